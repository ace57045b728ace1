# With restartPolicy Never a pod whose pause dies has failed.
kill pause after: app | up
not on containerd: its pause is a program of an image

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  Failed

app:
  started
  exited with code 137
  ? stopping

log app:
  up
