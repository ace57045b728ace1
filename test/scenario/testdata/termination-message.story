# Where a container's last words come from: its file, or its log when it failed
# and the policy says so.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

logs:
  started
  exited with code 1: from the log

file:
  started
  exited with code 1: from the file

success:
  started
  completed

path:
  started
  completed: from my file

log logs:
  from the log

log file:
  from the log

log success:
  from the log
