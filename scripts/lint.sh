#!/bin/bash
# The mechanical part of a review: format, vet, shell scripts, staticcheck.
# Compiled as `make build` does, so that Kubernetes is compiled once for both.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${GO:=go}" "${TAGS:=containers_image_openpgp}"
# Pinned: a newer one may see more, and then it is raised on purpose.
STATICCHECK=honnef.co/go/tools/cmd/staticcheck@v0.8.2

status=0
unformatted=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'not gofmt-ed:\n%s\n' "$unformatted"
	status=1
fi

CGO_ENABLED=0 "$GO" vet -trimpath -tags "$TAGS" ./... || status=1

if command -v shellcheck >/dev/null; then
	git ls-files '*.sh' .ci/run | xargs shellcheck -S warning || status=1
else
	echo "lint: shellcheck is not installed; scripts not checked"
fi

# staticcheck is fetched as a Go tool; a machine without a network goes
# without it, and says so.
if bin=$(mktemp -d) && GOBIN=$bin GOFLAGS=-mod=mod "$GO" install "$STATICCHECK" 2>/dev/null; then
	CGO_ENABLED=0 GOFLAGS=-trimpath "$bin/staticcheck" -tags "$TAGS" ./... || status=1
else
	echo "lint: staticcheck could not be fetched; not run"
fi
rm -rf "$bin"
exit $status
