# The documentation's lifecycle-events.
interrupt after: lifecycle-demo-container | Hello

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 10 s of grace
  Succeeded

lifecycle-demo-container:
  started
  ? stopping
  completed

log lifecycle-demo-container:
  Hello from the postStart handler
  quit
