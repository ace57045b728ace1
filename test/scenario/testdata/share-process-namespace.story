# The documentation's shareProcessNamespace: a container sees the other's
# processes and files, and may send signals.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

nginx:
  started
  exited with code 137

shell:
  started
  completed

log shell:
  here
  not PID 1
