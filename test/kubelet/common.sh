# What run.sh and cluster.sh have in common, which source it: the programs, a
# place of its own for a kubelet and a runtime, and checks.
# shellcheck shell=bash
unipod=$(readlink -f "$1")
here=$(dirname "$(readlink -f "$0")")
repo=$here/../..

if [ -z "${KUBELET_INSIDE:-}" ]; then
	kubelet=${2:-}
	mkdir -p "$here/bin"
	if [ -z "$kubelet" ]; then
		kubelet=$here/bin/kubelet
		# As `make build` does, so that both share what is compiled.
		version=$(cd "$here/tools" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
		(cd "$here/tools" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$kubelet" k8s.io/kubernetes/cmd/kubelet)
	fi
	(cd "$repo" && CGO_ENABLED=0 go build -trimpath -o "$here/bin/stream" ./test/kubelet/stream)
	(cd "$here/../critest/tools" && CGO_ENABLED=0 go build -trimpath -o "$here/bin/crictl" sigs.k8s.io/cri-tools/cmd/crictl)
	KUBELET_INSIDE=$(readlink -f "$kubelet") exec unshare -m -n --propagation slave "$0" "$unipod"
fi

mount --make-rshared /
ip link set lo up
# A node's address can't be the loopback's.
address=192.0.2.1
ip link add node0 type veth peer name node1
ip addr add $address/24 dev node0
ip link set node0 up
ip link set node1 up
work=$(mktemp -d /tmp/kubelet.XXXXXX)
group=/$(basename "$work")
endpoint=unix://$work/run/cri.sock
unipod() { "$unipod" --root "$work/root" --run "$work/run" "$@"; }
crictl() { "$here/bin/crictl" --config /dev/null -r "$endpoint" -i "$endpoint" "$@"; }

# Where a kubelet links logs to, whatever it is told about their directory.
mkdir -p /var/log/containers
mount -t tmpfs tmpfs /var/log/containers

# What a kubelet sets on its machine.
settings=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes)
before=()
for s in "${settings[@]}"; do before+=("$s=$(sysctl -n "$s")"); done
controllers=()
for dir in /sys/fs/cgroup/* /sys/fs/cgroup; do
	[ -e "$dir/cgroup.procs" ] && controllers+=("$dir") && mkdir -p "$dir$group"
done

node='' other='' kubelet=''
end() {
	local code=$?
	set +e
	[ -z "$kubelet" ] || crash "$kubelet"
	for run in "$work"/*/cri.sock; do
		"$here/bin/crictl" --config /dev/null -r "unix://$run" rmp -af >/dev/null 2>&1
	done
	# shellcheck disable=SC2086 # each may be none
	[ -z "$node$other" ] || kill $node $other 2>/dev/null
	wait 2>/dev/null
	sysctl -q -w "${before[@]}"
	for dir in "${controllers[@]}"; do
		find "$dir$group" -depth -type d -exec rmdir {} + 2>/dev/null
	done
	grep " $work/" /proc/self/mounts | cut -d' ' -f2 | sort -r | xargs -r umount -l
	if [ $code = 0 ] && [ -z "${KEEP:-}" ]; then
		rm -rf "$work"
	else
		echo "logs: $work/*.log" >&2
	fi
	exit $code
}
trap end EXIT

passed=0
ok() { passed=$((passed + 1)); }
fail() {
	{
		echo "kubelet: $1"
		echo "--- the pods"
		crictl pods
		crictl ps -a
		echo "--- the kubelet's errors"
		grep '^E' "$work/kubelet.log" | tail -n 20
		echo "--- the node"
		tail -n 20 "$work/serve.log"
	} >&2
	exit 1
}
# check NAME WANT GOT: GOT holds the extended regular expression WANT.
check() {
	grep -qE -- "$2" <<<"$3" || fail "$1: want /$2/, got: $3"
	ok
}
# await NAME WANT SECONDS COMMAND...: until it prints WANT.
await() {
	local name=$1 want=$2 deadline=$((SECONDS + $3)) got=
	shift 3
	until got=$("$@" 2>&1) && grep -qE -- "$want" <<<"$got"; do
		[ $SECONDS -lt $deadline ] || fail "$name: want /$want/, got: $got"
		sleep 0.2
	done
	ok
}

# shellcheck disable=SC2034 # of who sources this
kubelet_program=$KUBELET_INSIDE
# crash PID: as an upgrade or the OOM killer ends it.
crash() {
	kill -9 "$1"
	wait "$1" 2>/dev/null || true
}

image=localhost/unipod-demo:1
"$repo/examples/demo/image.sh" $image "$work/image.tar"
unipod image load "$work/image.tar" >/dev/null

# start_node [FLAG...]
start_node() {
	"$unipod" --root "$work/root" --run "$work/run" serve --only cri "$@" >>"$work/serve.log" 2>&1 &
	node=$!
	await 'the runtime' RuntimeReady 30 crictl info
}
