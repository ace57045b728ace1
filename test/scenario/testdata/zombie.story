# In a shared process namespace orphans belong to pause, which reaps them.
not on containerd: its pause is a program of an image, here one that reaps nobody

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
  completed

log app:
  PPid:	1
  reaped
