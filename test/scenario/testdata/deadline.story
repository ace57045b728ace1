# activeDeadlineSeconds fails a pod that runs for longer.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  DeadlineExceeded: Pod was active on the node longer than the specified deadline
  ? not ready
  Failed (DeadlineExceeded): Pod was active on the node longer than the specified deadline

app:
  started
  ? stopping
  completed

log app:
  asked to end
