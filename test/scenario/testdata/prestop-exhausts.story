# A hook that uses up the grace is cut off; the container has two seconds left
# after its signal.
interrupt after: app | up

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 1 s of grace
  Succeeded

app:
  started
  ? stopping
  completed

log app:
  up
  asked to end
  had two seconds
