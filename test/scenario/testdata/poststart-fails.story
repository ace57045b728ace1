# A postStart hook that fails ends its container.

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
  FailedPostStartHook: PostStartHook failed
  FailedPostStartHook
  completed

log app:
  asked to end
