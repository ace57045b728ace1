# Volumes of several kinds: in memory with a limit, subPath and subPathExpr, an
# image.
not on containerd: 1.6 has no image volumes

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

write:
  started
  completed

read:
  started
  completed

log read:
  deep
  deep
  tmpfs 8
  full
  /image/bin/server
  read-only
