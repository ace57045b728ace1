# The documentation's configmap-demo-pod: variables, files, items, subPath.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

demo:
  started
  completed

log demo:
  3 user-interface.properties
  MY_A=one
  MY_B=two
  enemy.types=aliens,monsters
  color.good=purple
  400
  ..data/game.properties
  enemy.types=aliens,monsters
