# A container's own restartPolicy stands over the pod's.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

onfailure:
  started
  exited with code 1
  started again (restart 1)
  completed

never:
  started
  completed
