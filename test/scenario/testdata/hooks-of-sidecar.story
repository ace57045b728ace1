# A sidecar's hooks: postStart before anything after it starts; preStop as soon
# as the pod ends, only its signal waits for the app.
interrupt after: app | up

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 20 s of grace
  Succeeded

side:
  started
  ? stopping
  completed

app:
  started
  ? stopping
  completed

log side:
  side postStart
  app starts
  side preStop
  app ends

log app:
  up
