# A pod that outgrows its emptyDir's sizeLimit is evicted, with a second to end.

pod:
  ? sandbox ready
  ? Running
  ? ready
  Evicted: Usage of EmptyDir volume "scratch" exceeds the limit "1Mi".
  ? not ready
  Failed (Evicted): Usage of EmptyDir volume "scratch" exceeds the limit "1Mi".

app:
  started
  ? stopping
  exited with code 137

log app:
  written
