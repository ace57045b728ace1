# postStart runs when the container's process runs, beside it.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

exec:
  started
  completed

sleep:
  started
  completed

log exec:
  hello from the hook
