# restartPolicy Never: every container runs once; one that failed fails the
# pod when all have ended.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Failed

bad:
  started
  exited with code 3

missing:
  exited with code 128 (StartError): …

good:
  started
  completed
