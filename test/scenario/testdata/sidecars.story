# Sidecars start in their place among the init containers, each as soon as the
# one before has started, which a startup probe says; they live on beside the
# app, and end after it, in reverse order.
interrupt after: app | up

order:
  log: started < prepare: started
  prepare: started < proxy: started
  proxy: started < app: started

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 30 s of grace
  Succeeded

log:
  started
  ? Startup probe failed: …
  started up
  ? stopping
  completed

prepare:
  started
  completed

proxy:
  started
  ? stopping
  completed

app:
  started
  ? stopping
  completed

log log:
  app ends
  proxy ends
  log ends

log app:
  up
