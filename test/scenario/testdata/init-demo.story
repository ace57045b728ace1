# The documentation's init-containers: one fetches a page, the other serves it.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

install:
  started
  completed

nginx:
  started
  completed

log nginx:
  <html>Welcome</html>
