# The documentation's grpc-liveness: grpc.health.v1 answers for a service,
# then with NOT_SERVING.
interrupt after: app | serving #2

pod:
  ? sandbox ready
  ? Running
  …
  deletion begins, 5 s of grace
  …

app:
  started
  started up
  Liveness probe failed: service unhealthy (responded with "NOT_SERVING")
  failed liveness probe, will be restarted
  completed
  started again (restart 1)
  …

log app:
  serving
  asked to end
  serving
  …
