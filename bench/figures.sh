#!/bin/bash
# make figures: runs the bench and writes its table into both READMEs, between
# their markers. Only to be run on a machine that does nothing else.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
unipod=$1
shift
table=$(mktemp)
trap 'rm -f "$table" "$table.md"' EXIT
"$here/run.sh" "$unipod" "$@" >"$table"
{
	echo '```'
	sed 's/ *$//' "$table"
	echo '```'
} >"$table.md"
for readme in "$here"/../README.md "$here"/../README.zh-CN.md; do
	awk -v file="$table.md" '
		/<!-- figures:/ { print; while ((getline line < file) > 0) print line; close(file); inside = 1 }
		/<!-- \/figures -->/ { inside = 0 }
		!inside && !/<!-- figures:/ { print }
	' "$readme" >"$readme.tmp"
	mv "$readme.tmp" "$readme"
done
cat "$table"
