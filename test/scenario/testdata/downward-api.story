# The documentation's kubernetes-downwardapi-volume-example and
# dapi-envars: what a pod knows of itself.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

client:
  started
  completed

log client:
  cluster="test-cluster1"
  zone="us-est-coast"
  two
  500
  64
  downward-api default 125
  my address
