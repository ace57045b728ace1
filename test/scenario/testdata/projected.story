# The documentation's projected volume: several sources in one directory.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

container-test:
  started
  completed

log container-test:
  admin
  quiet
  app="projected"511
