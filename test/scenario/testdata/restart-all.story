# A rule may ask for the whole pod: every container is ended and removed, and
# the pod begins anew in its sandbox, init containers first.

order:
  watcher: exited with code 88 < pod: restarting all containers
  pod: restarting all containers < prepare: started again (restart 1)
  prepare: started again (restart 1) < worker: started again (restart 1)

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  restarting all containers
  ? not ready
  ? Running
  ? ready
  ? not ready
  Succeeded

prepare:
  started
  completed
  ? waiting: RestartingAllContainers: The container is removed because RestartAllContainers in place
  started again (restart 1)
  completed

worker:
  started
  ? killing
  ? exited with code 137
  ? waiting: RestartingAllContainers: The container is removed because RestartAllContainers in place
  started again (restart 1)
  completed
  ? killing

watcher:
  started
  exited with code 88
  ? waiting: RestartingAllContainers: The container is removed because RestartAllContainers in place
  started again (restart 1)
  completed

log worker:
  prepare
  prepare
