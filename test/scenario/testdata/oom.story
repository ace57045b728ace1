# Too much memory ends a container with OOMKilled, 137.
not on containerd: 1.6 learns of an OOM kill now and then only after the exit

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
