# A container that crashes is restarted at once, then after 10 s; the next time
# it would be 20 s.
interrupt after: app | hello #3

pod:
  ? sandbox ready
  ? Running
  …
  deletion begins, 1 s of grace
  …

app:
  started
  exited with code 1
  started again (restart 1)
  exited with code 1
  waiting: CrashLoopBackOff: back-off 10s restarting failed container=app pod=crashloop_default(UID)
  started again (restart 2)
  …

log app:
  hello
  hello
  hello
  …
