# The documentation's security-context-demo, 1 to 4.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

override:
  started
  completed

demo:
  started
  completed

caps:
  started
  completed

log override:
  2000
  read-only root
  CapEff:	0000000000000000

log demo:
  1000
  3000
  3000 2000 4000
  1000 2000
  drwxrwsrwx
  NoNewPrivs:	1

log caps:
  CapPrm:	00000000aa0435fb
