#!/bin/bash
# make bench: unipod in directories of its own beside the floor and the peers
# installed here. Further arguments go to `unipod bench`.
set -euo pipefail
unipod=$1
shift
dir=$(mktemp -d -p /var/tmp unipod-bench-XXXXXX)
run=$(mktemp -d -p /run unipod-bench-XXXXXX)
trap 'rm -rf "$dir" "$run"' EXIT
"$unipod" --root "$dir" --run "$run" bench "$@"
