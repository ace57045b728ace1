# Init containers run one after the other, each to its success; one that fails
# is run again alone. The app container starts when all have succeeded.

order:
  first: started < second: started
  second: started again (restart 1) < third: started
  third: started < app: started

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

first:
  started
  completed

second:
  started
  exited with code 1
  started again (restart 1)
  completed

third:
  started
  completed

app:
  started
  completed

log app:
  one
  two
  two
  three
