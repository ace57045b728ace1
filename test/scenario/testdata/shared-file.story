# A sidecar updates a file of a shared volume, the app sees it.

order:
  clock: started < reader: started

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

clock:
  started
  ? stopping
  completed

reader:
  started
  completed

log reader:
  it changed
  read-only
