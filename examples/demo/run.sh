#!/bin/bash
# Plays the demo pod with the given unipod: makes its image, loads it, runs it
# until Ctrl-C, and takes the image away again.
set -euo pipefail
unipod=${1:-unipod}
here=$(dirname "$(readlink -f "$0")")
image=localhost/unipod-demo:1

tar=$(mktemp --suffix=.tar)
trap 'rm -f "$tar"' EXIT
"$here/image.sh" "$image" "$tar"
"$unipod" image load "$tar"
rm -f "$tar"

cat <<EOF

The pod is in $here/pod.yaml. When it is ready, look from another terminal:

  curl http://127.0.0.1:8080/         the page, by the port of this machine
  curl http://ADDRESS/                the same by the pod's own address, which is printed below
  sudo $unipod anatomy demo
  sudo $unipod anatomy demo --recipe  every system call that made it

Ctrl-C ends it.

EOF

# Ctrl-C reaches unipod too, which then ends the pod; this script waits for it.
trap : INT
code=0
"$unipod" play "$here/pod.yaml" || code=$?
"$unipod" image rm "$image" >/dev/null
[ "$code" = 130 ] || exit "$code"
