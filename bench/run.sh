#!/bin/bash
# make bench: unipod in directories of its own beside the floor and the peers
# installed here. Further arguments go to `unipod bench`.
set -euo pipefail
unipod=$1
shift
dir=$(mktemp -d -p /var/tmp unipod-bench-XXXXXX)
# As on most machines, what a reboot ends is in memory.
memory=/run
[ "$(stat -fc %T /run)" = tmpfs ] || memory=/dev/shm
run=$(mktemp -d -p $memory unipod-bench-XXXXXX)
trap 'rm -rf "$dir" "$run"' EXIT
"$unipod" --root "$dir" --run "$run" bench "$@"
echo
# shellcheck disable=SC2086 # flags are words
"$unipod" bench api ${BENCH_API_FLAGS:-}
