# The documentation's secret-pod: files in memory, of the mode asked for.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

test-container:
  started
  completed

log test-container:
  my-app
  400 root
  my-app
  tmpfs
