# stopSignal stands in for SIGTERM.
not on containerd: 1.6 has no stop signal of a container
interrupt after: app | up

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 20 s of grace
  Succeeded

app:
  started
  ? stopping
  completed

log app:
  up
  USR1
