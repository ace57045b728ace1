#!/bin/bash
# Runs critest's AppArmor cases, which it skips on a machine without AppArmor,
# in the virtual machine of run.sh.
#
#   test/vm/apparmor.sh UNIPOD
#
# Needs what run.sh does and the package apparmor: its parser, and the
# abstractions that the cases' profiles include.
set -euo pipefail
unipod=$(readlink -f "$1")
here=$(cd "$(dirname "$0")" && pwd)
repo=$here/../..
command -v apparmor_parser >/dev/null || { echo "apparmor.sh: apparmor_parser is missing (Debian: apt install apparmor)" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$repo/test/critest/tools" && CGO_ENABLED=0 go test -trimpath -c -o "$work/critest" sigs.k8s.io/cri-tools/cmd/critest)
image=localhost/unipod-demo:1
"$repo/examples/demo/image.sh" $image "$work/image.tar"
echo "defaultTestContainerImage: $image" >"$work/images.yaml"
printf '#!/bin/sh\nexec "$@"\n' >"$work/sudo"
cat >"$work/cases" <<END
#!/bin/sh
mkdir -p /var/cache/apparmor
endpoint=unix:///run/unipod/cri.sock
/tests/unipod --root /tmp/unipod image load /tests/image.tar >/dev/null
/tests/unipod --root /tmp/unipod serve --only cri >/tmp/serve.log 2>&1 &
for i in \$(seq 100); do [ -S /run/unipod/cri.sock ] && break; sleep 0.1; done
/tests/critest --runtime-endpoint \$endpoint --image-endpoint \$endpoint --test-images-file /tests/images.yaml \\
	--ginkgo.focus AppArmor --ginkgo.no-color >/tmp/critest.log 2>&1
code=\$?
[ \$code = 0 ] || cat /tmp/critest.log
grep -E '^(Ran [0-9]+ of|SUCCESS!|FAIL!)' /tmp/critest.log || code=1
grep -q '^Ran 9 of' /tmp/critest.log || code=1
exit \$code
END
chmod +x "$work/sudo" "$work/cases"
"$here/run.sh" -a apparmor=1 -a security=apparmor -x apparmor_parser \
	-f "$unipod=/tests/unipod" -f "$work/critest=/tests/critest" -f "$work/image.tar=/tests/image.tar" -f "$work/images.yaml=/tests/images.yaml" \
	-f "$work/sudo=/bin/sudo" -f /usr/share/apparmor-features=/usr/share/apparmor-features -f /etc/apparmor=/etc/apparmor -f /etc/apparmor.d=/etc/apparmor.d "$work/cases"
