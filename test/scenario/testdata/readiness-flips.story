# Readiness comes and goes; the container isn't touched.

pod:
  ? sandbox ready
  Running
  ready
  not ready
  ready
  not ready
  Succeeded

app:
  started
  ? Readiness probe failed: …
  ready
  Readiness probe failed: cat: can't open '/tmp/ready': No such file or directory
  not ready
  ? Readiness probe failed: …
  ready
  …
  completed
