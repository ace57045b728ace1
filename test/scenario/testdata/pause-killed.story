# When pause dies, everything in the pod dies with it; the pod gets a new
# sandbox and begins anew, its volumes as they were.
kill pause after: app | up
interrupt after: app | up #2
not on containerd: its pause is a program of an image

order:
  prepare: started again (restart 1) < app: started again (restart 1)

pod:
  ? sandbox ready
  Running
  ? ready
  ? not ready
  SandboxChanged: Pod sandbox changed, it will be killed and re-created.
  ? not ready
  ? sandbox ready
  ? Running
  ready
  deletion begins, 1 s of grace
  Succeeded

prepare:
  started
  completed
  started again (restart 1)
  completed

app:
  started
  ? stopping
  exited with code 137
  started again (restart 1)
  ? stopping
  completed

log app:
  up
  1
  up
  2
