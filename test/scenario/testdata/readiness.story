# Every kind of probe says when a container is ready; the pod is when all are.
interrupt after: · Running, ready

order:
  http: ready < pod: ready
  https: ready < pod: ready
  tcp: ready < pod: ready
  grpc: ready < pod: ready
  exec: ready < pod: ready

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 5 s of grace
  Succeeded

tcp:
  started
  …
  ready
  ? stopping
  …
  completed

http:
  started
  …
  ready
  ? stopping
  …
  completed

grpc:
  started
  …
  ready
  ? stopping
  …
  completed

exec:
  started
  …
  ready
  ? stopping
  …
  completed

https:
  started
  …
  ready
  ? stopping
  …
  completed

log tcp:
  serving
  asked to end

log http:
  serving
  asked to end

log grpc:
  serving
  asked to end

log https:
  serving
  asked to end
