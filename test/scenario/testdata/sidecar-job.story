# A sidecar is restarted whatever the pod's restartPolicy, and does not keep a
# Job's pod from ending.

order:
  work: completed < tail: completed

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

tail:
  started
  exited with code 1
  started again (restart 1)
  ? stopping
  completed

work:
  started
  completed

log work:
  done
