# The documentation's commands and dependent-envars: command, args, and what
# $(NAME) means in them.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

args:
  started
  completed

entrypoint:
  started
  completed

workdir:
  started
  completed

log args:
  hello world hello world, hello world $(MESSAGE) $(NOBODY) $(MESSAGE)

log entrypoint:
  of the image's command nothing is left

log workdir:
  /made/for/me
