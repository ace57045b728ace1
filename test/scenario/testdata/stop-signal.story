# stopSignal stands in for SIGTERM.
interrupt after: app | up

pod:
  sandbox ready
  Running
  ready
  deletion begins, 20 s of grace
  Succeeded

app:
  started
  stopping
  completed

log app:
  up
  USR1
