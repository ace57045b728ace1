# A postStart request goes to the pod, whoever answers there.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

server:
  started
  ? Startup probe failed: …
  started up
  ? stopping
  completed

app:
  started
  completed

log server:
  serving
  asked for /start, because
  asked to end
