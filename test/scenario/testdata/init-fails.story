# With restartPolicy Never an init container that fails fails the pod: nothing
# after it starts.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

first:
  started
  exited with code 5

log first:
  broken
