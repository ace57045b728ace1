# restartPolicy OnFailure restarts what failed, until it succeeds.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

app:
  started
  exited with code 7
  started again (restart 1)
  completed
