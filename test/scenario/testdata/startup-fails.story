# A container that doesn't start up in time is ended; liveness isn't asked
# before.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

app:
  started
  Startup probe failed: not yet
  failed startup probe
  completed

log app:
  asked to end
