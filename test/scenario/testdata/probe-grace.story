# A probe's terminationGracePeriodSeconds stands over the pod's, which would
# keep this one for ten minutes.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

app:
  started
  Liveness probe failed:
  failed liveness probe
  exited with code 137

log app:
  not now
