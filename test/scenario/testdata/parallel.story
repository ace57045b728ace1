# App containers run beside each other: each waits for the other here.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

two:
  started
  completed

one:
  started
  completed

log two:
  met

log one:
  met
