# An app that ignores SIGTERM is killed when its grace is over.
interrupt after: app | up

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 2 s of grace
  Failed

app:
  started
  ? stopping
  exited with code 137

log app:
  up
  not now
