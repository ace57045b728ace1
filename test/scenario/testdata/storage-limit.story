# A container that writes more to its own layer than its limit has its pod evicted.

pod:
  ? sandbox ready
  ? Running
  ? ready
  Evicted: Container app exceeded its local ephemeral storage limit "2Mi".
  ? not ready
  Failed (Evicted): Container app exceeded its local ephemeral storage limit "2Mi".

app:
  started
  ? stopping
  exited with code 137

other:
  started
  ? stopping
  exited with code 137

log app:
  written
