# Too much memory ends a container with OOMKilled, 137.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

app:
  started
  exited with code 137 (OOMKilled)
