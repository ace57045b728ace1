# A pod whose readiness gate nobody opens is never ready.
interrupt after: app | up

pod:
  ? sandbox ready
  Running
  deletion begins, 2 s of grace
  Succeeded

app:
  started
  ? stopping
  completed

log app:
  up
