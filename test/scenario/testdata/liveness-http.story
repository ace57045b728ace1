# The documentation's http-liveness, by a named port and with a header that the
# server insists on; then it answers with 500.
interrupt after: app | serving #2

pod:
  ? sandbox ready
  ? Running
  …
  deletion begins, 5 s of grace
  …

app:
  started
  Liveness probe failed: HTTP probe failed with statuscode: 500
  failed liveness probe, will be restarted
  completed
  started again (restart 1)
  …

log app:
  serving
  asked to end
  serving
  …
