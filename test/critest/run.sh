#!/bin/bash
# Runs the CRI's public conformance tool, critest, against `unipod serve --only cri`.
#
#   test/critest/run.sh UNIPOD [critest flags...]
#
# The tool comes from sigs.k8s.io/cri-tools at the version tools/go.mod pins.
# The images it asks for come from a registry on 127.0.0.1:5000, which the
# script named by $CRITEST_IMAGE_SCRIPT makes and fills. Two cases can't pass there,
# both for what these images are, not for what the runtime does:
#
#   public image with digest   pulls a published image by its digest
#   MaskedPaths                its proof is a failing `ls`, which the images' shell
#                              has built in; internal/runtime's TestMaskedPaths
#                              proves the same by reading what is masked
#
# Environment: RUNS (default 1) times in a row, PARALLEL=n for n at a time.
set -euo pipefail
unipod=$(readlink -f "$1")
shift
here=$(dirname "$(readlink -f "$0")")
images=${CRITEST_IMAGE_SCRIPT:?names the script that makes the images of critest}

if [ -z "${CRITEST_INSIDE:-}" ]; then
	cache=${CRITEST_BIN:-$here/bin}
	mkdir -p "$cache"
	# As `make build` does, so that both share what is compiled.
	export CGO_ENABLED=0
	(cd "$here/tools" && go test -trimpath -c -o "$cache/critest" sigs.k8s.io/cri-tools/cmd/critest &&
		go build -trimpath -o "$cache" sigs.k8s.io/cri-tools/cmd/crictl github.com/onsi/ginkgo/v2/ginkgo)
	# The images' nginx has its site as a link from the root directory, which
	# the script follows from ours.
	site=/etc/nginx/sites-available/default
	if [ ! -e $site ]; then
		mkdir -p "$(dirname $site)"
		printf 'server {\n\tlisten 80 default_server;\n\tlisten [::]:80 default_server;\n\troot /var/www/html;\n\tindex index.nginx-debian.html;\n}\n' >$site
	fi
	"$images"
	# Mounts must propagate, and the machine's own must not be touched.
	mkdir -p /etc/unipod
	CRITEST_INSIDE=1 PATH=$cache:$PATH exec unshare -m --propagation slave "$0" "$unipod" "$@"
fi

mount --make-rshared /
mount -t tmpfs tmpfs /etc/unipod
for registry in gcr.io registry.k8s.io k8s.gcr.io; do
	mkdir -p "/etc/unipod/certs.d/$registry"
	printf 'server = "https://%s"\n[host."http://127.0.0.1:5000"]\n  capabilities = ["pull", "resolve"]\n' \
		$registry >"/etc/unipod/certs.d/$registry/hosts.toml"
done
work=$(mktemp -d /tmp/critest.XXXXXX)
"$unipod" --root "$work/root" --run "$work/run" serve --only cri >"$work/serve.log" 2>&1 &
node=$!
trap 'kill $node 2>/dev/null; wait $node 2>/dev/null || true; rm -rf "$work"' EXIT
endpoint=unix://$work/run/cri.sock
for _ in $(seq 100); do [ -S "$work/run/cri.sock" ] && break; sleep 0.1; done

failed=0
for run in $(seq "${RUNS:-1}"); do
	report=$work/report-$run.json
	critest --runtime-endpoint "$endpoint" ${PARALLEL:+--parallel="$PARALLEL"} \
		--ginkgo.skip 'public image with digest|MaskedPaths' --ginkgo.no-color \
		--ginkgo.json-report="$report" "$@" >"$work/critest.log" 2>&1 || {
		failed=1
		tail -n 400 "$work/critest.log"
		echo "--- the node's log"
		tail -n 50 "$work/serve.log"
	}
	grep -E '^(Ran [0-9]+ of|SUCCESS!|FAIL!)' "$work/critest.log" || tail -n 20 "$work/critest.log"
done
if [ -z "${PARALLEL:-}" ]; then
	echo "skipped, and why:"
	jq -r '.[].SpecReports[] | select(.State == "skipped" and .LeafNodeType == "It")
		| "  \(.ContainerHierarchyTexts | join(" / ")) / \(.LeafNodeText): \(.Failure.Message // "not asked for (a benchmark, or an artefact of the images)")"' "$report" | sort | uniq
fi
exit $failed
