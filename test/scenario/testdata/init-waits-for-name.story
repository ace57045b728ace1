# The documentation's myapp: an init container waits until a name is known.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

init-myservice:
  started
  completed

myapp-container:
  started
  completed

log myapp-container:
  The app is running!
