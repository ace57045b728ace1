#!/bin/bash
# Fuzzes, for $FUZZTIME each, every native Go fuzz target in the tree and then
# pause's decoder (libFuzzer with the address sanitizer).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${FUZZTIME:=10s}" "${TAGS:=containers_image_openpgp}"

# go test fuzzes one target of one package at a time.
grep -rlE --include='*_test.go' '^func Fuzz[A-Z]' . | sort | while read -r file; do
	package=$(dirname "$file")
	sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file" | while read -r target; do
		echo "== fuzz $package $target"
		CGO_ENABLED=0 go test -tags "$TAGS" -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$package"
	done
done

echo "== fuzz pause"
make -C pause fuzz FUZZTIME="${FUZZTIME%s}"
