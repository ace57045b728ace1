# The documentation's exec-liveness: a container whose file goes away is
# restarted.
interrupt after: liveness | hello #2

pod:
  ? sandbox ready
  ? Running
  …
  deletion begins, 1 s of grace
  …

liveness:
  started
  Liveness probe failed: cat: can't open '/tmp/healthy': No such file or directory
  failed liveness probe, will be restarted
  exited with code 137
  started again (restart 1)
  …

log liveness:
  hello
  hello
  …
