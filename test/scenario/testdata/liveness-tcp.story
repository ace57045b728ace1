# A port that is closed fails a tcpSocket probe.
interrupt after: app | serving #2

pod:
  ? sandbox ready
  ? Running
  …
  deletion begins, 5 s of grace
  …

app:
  started
  Liveness probe failed: dial tcp ADDRESS:9000: connect: connection refused
  failed liveness probe, will be restarted
  completed
  started again (restart 1)
  …

log app:
  serving
  asked to end
  serving
  …
