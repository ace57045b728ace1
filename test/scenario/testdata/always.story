# restartPolicy Always restarts a container that succeeded, too.
interrupt after: app | hello #2

pod:
  ? sandbox ready
  ? Running
  …
  deletion begins, 1 s of grace
  …

app:
  started
  completed
  started again (restart 1)
  …

log app:
  hello
  hello
