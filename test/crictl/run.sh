#!/bin/bash
# Tries every command of crictl against a node and checks what it prints.
#
#   test/crictl/run.sh UNIPOD [CRICTL]
#
# UNIPOD is the binary; CRICTL is crictl of the version that
# test/critest/tools/go.mod pins, built when it isn't named. Everything happens
# in mount and network namespaces and directories of its own; the registry that
# images are pulled from is Debian's docker-registry.
# shellcheck disable=SC2016 # what is in single quotes is for the container's shell
set -euo pipefail
unipod=$(readlink -f "$1")
here=$(dirname "$(readlink -f "$0")")
repo=$here/../..

if [ -z "${CRICTL_INSIDE:-}" ]; then
	crictl=${2:-}
	if [ -z "$crictl" ]; then
		crictl=$here/../critest/bin/crictl
		mkdir -p "$(dirname "$crictl")"
		(cd "$here/../critest/tools" && CGO_ENABLED=0 go build -trimpath -o ../bin/crictl sigs.k8s.io/cri-tools/cmd/crictl)
	fi
	CRICTL_INSIDE=$(readlink -f "$crictl") exec unshare -m -n --propagation slave "$0" "$unipod"
fi

mount --make-rshared /
ip link set lo up
work=$(mktemp -d /tmp/crictl.XXXXXX)
unipod() { "$unipod" --root "$work/root" --run "$work/run" "$@"; }
endpoint=unix://$work/run/cri.sock
crictl() { "$CRICTL_INSIDE" --config /dev/null -r "$endpoint" -i "$endpoint" "$@"; }
pids=()
end() {
	set +e
	if [ -S "$work/run/cri.sock" ]; then
		crictl rmp -af >/dev/null 2>&1
	fi
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done
	wait
	rm -rf "$work"
}
trap end EXIT

passed=0
step=
# check NAME WANT GOT: GOT holds the extended regular expression WANT.
check() {
	if ! grep -qE -- "$2" <<<"$3"; then
		printf 'crictl %s: want /%s/, got:\n%s\n--- the node\n' "$1" "$2" "$3" >&2
		tail -n 20 "$work/serve.log" >&2
		exit 1
	fi
	passed=$((passed + 1))
}
# try NAME WANT COMMAND...: crictl COMMAND succeeds and prints WANT.
try() {
	local name=$1 want=$2 got
	shift 2
	got=$(timeout 60 "$CRICTL_INSIDE" --config /dev/null -r "$endpoint" -i "$endpoint" "$@" 2>&1) || {
		check "$name" '^a success$' "exit $?: $got"
	}
	check "$name" "$want" "$got"
	step=$got
}
# until_ok COMMAND...: it succeeds within ten seconds.
until_ok() {
	for _ in $(seq 100); do
		"$@" >/dev/null 2>&1 && return
		sleep 0.1
	done
	check "waiting for: $*" '^a success$' "it never came"
}
lines() { grep -c . <<<"$1"; }

# A registry with an image, and a node with it.
image=localhost/unipod-demo:1
"$repo/examples/demo/image.sh" $image "$work/image.tar"
unipod image load "$work/image.tar" >/dev/null
port=5000 # in a network namespace of our own
cat >"$work/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:$port}
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
pids+=($!)
# push NAME: the image's archive goes to the registry, blob by blob.
push() {
	local base=http://127.0.0.1:$port/v2/$1 file digest to blobs=()
	mkdir "$work/archive"
	tar -C "$work/archive" -xf "$work/image.tar"
	for file in "$work"/archive/[0-9a-f]*.json "$work/archive/layer.tar"; do
		digest=sha256:$(sha256sum "$file" | cut -d' ' -f1)
		to=$(curl -fsS -X POST -D - -o /dev/null "$base/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
		curl -fsS -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$file" "$to&digest=$digest"
		blobs+=("{\"digest\":\"$digest\",\"size\":$(stat -c %s "$file"),\"mediaType\":\"application/vnd.oci.image.")
	done
	curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' -d "{\"schemaVersion\":2,
		\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",
		\"config\":${blobs[0]}config.v1+json\"},\"layers\":[${blobs[1]}layer.v1.tar\"}]}" "$base/manifests/1"
}
"$unipod" --root "$work/root" --run "$work/run" serve --only cri --cgroup-parent "/$(basename "$work")" >"$work/serve.log" 2>&1 &
pids+=($!)
until_ok test -S "$work/run/cri.sock"
until_ok crictl version

# The runtime.
try version 'RuntimeName: +unipod' version
try info '"RuntimeReady"' info
check info '"NetworkReady"' "$step"
check 'info: user namespaces' '"user_namespaces": *true' "$(tr -d '\n' <<<"$step")"
try runtime-config 'CGROUPFS|SYSTEMD|cgroupfs|systemd' runtime-config
try update-runtime-config '' update-runtime-config
try imagefsinfo 'images|imageFilesystems' imagefsinfo
try 'metricdescs' 'container_cpu_usage_seconds_total' metricdescs

# Images.
try images 'unipod-demo +1 ' images
try 'images -o json' '"repoTags"' images -o json
try inspecti 'unipod-demo:1' inspecti $image

# A pod and its containers.
cat >"$work/pod.json" <<JSON
{"metadata":{"name":"web","namespace":"default","uid":"u1","attempt":1},"hostname":"web",
 "log_directory":"$work/logs","labels":{"app":"web"},
 "linux":{"cgroup_parent":"/$(basename "$work")","security_context":{"namespace_options":{"pid":1}}}}
JSON
container() { # NAME SCRIPT [MORE]
	cat >"$work/$1.json" <<JSON
{"metadata":{"name":"$1"},"image":{"image":"$image"},"command":["sh","-c",$(jq -n --arg s "$2" '$s')],
 "log_path":"$1.log","linux":{"resources":{"memory_limit_in_bytes":67108864},"security_context":{"namespace_options":{"pid":1}}}${3:-}}
JSON
}
container app 'echo hello; echo oops >&2; mkdir /tmp/www; echo served >/tmp/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www'
container echo 'while read l; do echo got $l; done' ',"stdin":true'
container short 'echo short life; exit 7'

timeout 100 "$CRICTL_INSIDE" --config /dev/null -r "$endpoint" events >"$work/events" 2>&1 &
pids+=($!)
sleep 0.5
try runp '^[0-9a-f]{64}$' runp "$work/pod.json"
pod=$step
try pods "web +default" pods
try 'pods -q --label' "^$pod\$" pods -q --no-trunc --label app=web
check 'pods --label (none)' '^$' "$(crictl pods -q --label app=other)"
try inspectp 'SANDBOX_READY' inspectp "$pod"
check 'inspectp: address' '"ip": "10\.' "$step"
try create '^[0-9a-f]{64}$' create "$pod" "$work/app.json" "$work/pod.json"
app=$step
try 'ps -a' 'Created +app' ps -a
try start "^$app\$" start "$app"
try ps 'Running +app' ps
try 'create echo' '^[0-9a-f]{64}$' create "$pod" "$work/echo.json" "$work/pod.json"
echo_id=$step
try 'start echo' "$echo_id" start "$echo_id"
try inspect 'CONTAINER_RUNNING' inspect "$app"
check 'inspect: pid' '"pid": [1-9]' "$step"
try 'inspect a beginning' "$app" inspect "${app:0:12}"
until_ok grep -q oops "$work/logs/app.log"
try logs '^hello$' logs "$app"
check 'logs: stderr' '^oops$' "$step"
try 'logs --tail' '^(hello|oops)$' logs --tail 1 "$app"

# Commands in it.
try 'exec -s' '^web$' exec -s "$app" hostname
try exec '^3$' exec "$app" sh -c 'echo $((1+2))'
got=$(crictl exec "$app" sh -c 'exit 9' 2>&1) && check 'exec: exit code' '^a failure$' "$got"
check 'exec: exit code' 'exit (code|status) 9|exit code 9' "$got"
got=$(echo typed | timeout 20 "$CRICTL_INSIDE" --config /dev/null -r "$endpoint" exec -i "$app" head -n 1)
check 'exec -i' '^typed$' "$got"
got=$(printf 'tty\nexit\n' | timeout 20 script -qec "$CRICTL_INSIDE --config /dev/null -r $endpoint exec -it $app sh" /dev/null)
check 'exec -it' '/dev/pts/[0-9]' "$got"
try 'exec --sync timeout' '' exec -s --timeout 5 "$app" true
got=$(crictl exec -s --timeout 1 "$app" sleep 100 2>&1) && check 'exec -s --timeout' '^a failure$' "$got"
check 'exec -s --timeout' 'DeadlineExceeded|timeout|deadline' "$got"

# attach: what is typed comes back.
mkfifo "$work/in"
timeout 60 "$CRICTL_INSIDE" --config /dev/null -r "$endpoint" attach -i "$echo_id" <"$work/in" >"$work/attached" 2>&1 &
pids+=($!)
exec 7>"$work/in"
echo ping >&7
until_ok grep -q '^got ping$' "$work/attached"
check attach '^got ping$' "$(cat "$work/attached")"
exec 7>&-

# port-forward: a port of the pod's localhost.
timeout 60 "$CRICTL_INSIDE" --config /dev/null -r "$endpoint" port-forward "$pod" 18080:8080 >"$work/forward" 2>&1 &
forward=$!
pids+=("$forward")
until_ok busybox wget -qO- http://127.0.0.1:18080/
check port-forward '^served$' "$(busybox wget -qO- http://127.0.0.1:18080/)"
kill $forward

# Figures.
try stats 'app' stats
try 'stats -o json' '"usageCoreNanoSeconds"' stats -o json --id "$app"
try statsp 'web' statsp
try metricsp 'container_memory_usage_bytes' metricsp

# Changes.
try update "$app" update --memory 33554432 "$app"
check 'update: in force' '33554432' "$(crictl inspect "$app" | tr -d ' ' | grep -i memorylimitinbytes)"

# Ends.
try 'create short' '^[0-9a-f]{64}$' create "$pod" "$work/short.json" "$work/pod.json"
short=$step
try 'start short' "$short" start "$short"
until_ok sh -c "$CRICTL_INSIDE --config /dev/null -r $endpoint inspect $short | grep -q CONTAINER_EXITED"
try 'inspect: ended' '"exitCode": 7' inspect "$short"
try 'ps --state exited' 'Exited +short' ps -a --state exited
try stop "$app" stop "$app"
try 'logs of the ended' '^hello$' logs "$app"
try rm "$app" rm "$app"
try 'rm -f' "$echo_id" rm -f "$echo_id"
try stopp "$pod" stopp "$pod"
try 'inspectp: ended' 'SANDBOX_NOTREADY' inspectp "$pod"
try rmp "$pod" rmp "$pod"
check 'pods, none' '^0$' "$(crictl pods -q | grep -c . || true)"
check 'ps -a, none' '^0$' "$(crictl ps -aq | grep -c . || true)"

# run does it all at once.
try run '^[0-9a-f]{64}$' run --no-pull "$work/app.json" "$work/pod.json"
try 'rmp -f' "removed|[0-9a-f]{64}" rmp -f "$(crictl pods -q)"

for e in CONTAINER_CREATED CONTAINER_STARTED CONTAINER_STOPPED CONTAINER_DELETED; do
	check events "$e" "$(cat "$work/events")"
done

# Checkpoints are the CRI's option that is not offered.
got=$(crictl checkpoint --export="$work/x.tar" "$short" 2>&1) && check checkpoint '^a failure$' "$got"
check checkpoint 'Unimplemented|not (implemented|found)' "$got"

# Images, to the end.
try rmi 'Deleted|unipod-demo' rmi $image
push demo
try pull 'up to date' pull 127.0.0.1:$port/demo:1
try 'images --digests' '127.0.0.1:5000/demo +1 +[0-9a-f]' images --digests
try 'rmi of the pulled' 'Deleted' rmi 127.0.0.1:$port/demo:1
got=$(crictl pull 127.0.0.1:$port/none:1 2>&1) && check 'pull of nothing' '^a failure$' "$got"
check 'pull of nothing' 'not found|NotFound|unknown' "$got"
try 'rmi --prune' '' rmi --prune
echo "crictl: $passed checks passed"
