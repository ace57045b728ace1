# restartPolicyRules (KEP-5307): an exit code decides on a restart before the
# policy does.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

init:
  started
  exited with code 9
  started again (restart 1)
  completed

other:
  started
  exited with code 6
  started again (restart 1)
  exited with code 5

ruled:
  started
  exited with code 42
  started again (restart 1)
  exited with code 1
