# preStop comes before the signal, and may fail: the container ends all the
# same. (tcpSocket is accepted by the API, and can't be carried out.)
interrupt after: exec | up

pod:
  ? sandbox ready
  Running
  ready
  deletion begins, 20 s of grace
  Succeeded

http:
  started
  ? stopping
  completed

fails:
  started
  ? stopping
  ? FailedPreStopHook: PreStopHook failed
  completed

exec:
  started
  ? stopping
  completed

tcp:
  started
  ? stopping
  ? FailedPreStopHook: PreStopHook failed
  completed

sleep:
  started
  ? stopping
  completed

log http:
  serving
  asked for /stop, test
  asked to end

log fails:
  asked to end

log exec:
  up
  the hook came first
