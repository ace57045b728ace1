#!/bin/bash
# Runs Go tests as root in a virtual machine with Debian 12's kernel (6.1) and
# cgroup v2 alone, whatever this machine's kernel and cgroups are.
#
#   test/vm/run.sh [option...] PACKAGE|BINARY... [-- FLAG...]
#
# A PACKAGE (./internal/cgroup) is built with CGO_ENABLED=0 go test -c and run
# in a directory of its own with its testdata; a BINARY is run as it is. FLAGs
# go to each. They run one after another; the script ends with the exit code of
# the first that failed.
#
#   -c 1|2      mount cgroup v2 (default) or v1 controllers beside cgroup2
#   -s          boot with systemd as PID 1, the tests being a service
#   -x FILE     add a program of this machine, with the libraries it needs
#   -f SRC=DST  add a file
#   -b TAGS     build tags
#   -e NAME=VAL set an environment variable of the tests
#   -a ARG      add a kernel argument (apparmor=1)
#   -m MIB      memory (2048)
#   -t SECONDS  give up after (900)
#
# Needs qemu-system-x86, busybox-static, e2fsprogs and, the first time, apt to download
# the kernel, which is kept in $UNIPOD_VM_CACHE (~/.cache/unipod/vm). The
# processor is emulated, which boots in a few seconds and works inside other
# virtual machines; UNIPOD_VM_ACCEL=kvm uses KVM.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=test/vm/kernel.sh
. "$here/kernel.sh"
cache=${UNIPOD_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/unipod/vm}
cgroup=2 memory=2048 timeout=900 tags='' systemd=''
programs=() files=() environment=() kernelargs=()
while getopts c:sx:f:b:e:a:m:t: option; do
	case $option in
	c) cgroup=$OPTARG ;;
	s) systemd=1 ;;
	x) programs+=("$OPTARG") ;;
	f) files+=("$OPTARG") ;;
	b) tags=$OPTARG ;;
	e) environment+=("$OPTARG") ;;
	a) kernelargs+=("$OPTARG") ;;
	m) memory=$OPTARG ;;
	t) timeout=$OPTARG ;;
	*) sed -n '2,/^set /{/^set /!p}' "$0" | cut -c3- >&2; exit 64 ;;
	esac
done
shift $((OPTIND - 1))
tests=()
while (($#)) && [[ $1 != -- ]]; do
	tests+=("$1")
	shift
done
shift $(($# > 0 ? 1 : 0))
((${#tests[@]})) || { echo "run.sh: name a package or a test binary" >&2; exit 64; }

work=$(mktemp -d)
qemu=
finish() {
	[[ -z $qemu ]] || kill "$qemu" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,etc,root,lib/modules,tests,var/lib,usr/bin,usr/sbin}

mkdir -p "$cache"
kernel=$(flock "$cache" bash -c "$(declare -f fetch_kernel); fetch_kernel '$cache'")
release=$(basename "$kernel"/lib/modules/*)

# Debian's systemd and what it depends on, extracted likewise.
fetch_systemd() {
	local dir=$cache/systemd
	if [[ ! -e $dir/done ]]; then
		echo "run.sh: downloading systemd" >&2
		rm -rf "$dir"
		mkdir -p "$dir"
		(
			cd "$dir"
			apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances systemd |
				grep -E '^(systemd|mount|lib[a-z0-9.+-]*)$' | sort -u | xargs apt-get download -qq 2>/dev/null
			for package in *.deb; do dpkg-deb -x "$package" . && rm "$package"; done
		)
		rm -rf "$dir"/usr/share/{doc,man,locale,perl5}
		touch "$dir/done"
	fi
	echo "$dir"
}

# with_libraries adds a program and what ldd says it loads.
with_libraries() {
	local file
	for file in "$1" $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true); do
		mkdir -p "$root$(dirname "$file")"
		cp -L "$file" "$root$file"
	done
}
if [[ -n $systemd ]]; then
	tree=$(flock "$cache" bash -c "$(declare -f fetch_systemd); set -e; cache='$cache' fetch_systemd")
	rm -rf "${root:?}"/{bin,sbin,lib}
	for dir in bin sbin lib lib64; do
		mkdir -p "$root/usr/$dir"
		ln -s "usr/$dir" "$root/$dir"
		[[ ! -d $tree/$dir ]] || cp -a "$tree/$dir/." "$root/usr/$dir/"
		[[ ! -d $tree/usr/$dir ]] || cp -a "$tree/usr/$dir/." "$root/usr/$dir/"
	done
	cp -a "$tree/etc/." "$root/etc/"
	mkdir -p "$root/lib/modules"
	: >"$root/etc/machine-id"
	cat >"$root/etc/systemd/system/unipod-test.target" <<-END
		[Unit]
		Requires=unipod-test.service
	END
	cat >"$root/etc/systemd/system/unipod-test.service" <<-END
		[Unit]
		DefaultDependencies=no
		[Service]
		Environment=UNIPOD_VM_STAGE=systemd
		ExecStart=/init
		StandardOutput=tty
		StandardError=tty
		StandardInput=tty
		TTYPath=/dev/ttyS0
		Delegate=yes
	END
	kernelargs+=(systemd.unit=unipod-test.target systemd.show_status=0 unipod.systemd)
fi
cp "$(command -v busybox)" "$root/bin/busybox"
for program in ${programs[@]+"${programs[@]}"}; do
	with_libraries "$(command -v "$program")"
done
for file in ${files[@]+"${files[@]}"}; do
	mkdir -p "$root$(dirname "${file#*=}")"
	cp -rL "${file%%=*}" "$root${file#*=}"
done
for dir in fs/overlayfs fs/fuse net/bridge net/802 net/llc net/netfilter net/ipv4/netfilter net/ipv6/netfilter net/sctp net/vmw_vsock \
	drivers/virtio drivers/block/virtio_blk.ko drivers/net/veth.ko drivers/net/tun.ko drivers/net/dummy.ko drivers/block/loop.ko lib crypto; do
	if [[ -e $kernel/lib/modules/$release/kernel/$dir ]]; then
		mkdir -p "$(dirname "$root/lib/modules/$release/kernel/$dir")"
		cp -r "$kernel/lib/modules/$release/kernel/$dir" "$root/lib/modules/$release/kernel/$dir"
	fi
done
cp "$kernel/lib/modules/$release"/modules.{order,builtin} "$root/lib/modules/$release/"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
printf 'nameserver 192.0.2.53\n' >"$root/etc/resolv.conf"
printf 'unipod-vm\n' >"$root/etc/hostname"

# The tests, each in a directory of its own, and what runs them.
list=$root/tests/list
: >"$list"
number=0
for test in "${tests[@]}"; do
	number=$((number + 1))
	dir=$root/tests/$number
	mkdir -p "$dir"
	if [[ -f $test ]]; then
		cp "$test" "$dir/test"
	else
		(cd "$here/../.." && CGO_ENABLED=0 go test -c -tags "$tags" -o "$dir/test" "$test")
		[[ -e $dir/test ]] || { echo "run.sh: $test has no tests" >&2; exit 64; }
		source=$(cd "$here/../.." && go list -tags "$tags" -f '{{.Dir}}' "$test")
		[[ ! -d $source/testdata ]] || cp -r "$source/testdata" "$dir/"
	fi
	printf '%s\t%s\n' "$number" "$test" >>"$list"
done
for flag in "$@"; do printf '%s\n' "$flag"; done >"$root/tests/flags"
for variable in ${environment[@]+"${environment[@]}"}; do printf '%s\n' "$variable"; done >"$root/tests/environment"
install -m 755 "$here/init" "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"

accel=(-accel "tcg,thread=multi" -cpu max)
[[ ${UNIPOD_VM_ACCEL:-tcg} != kvm ]] || accel=(-accel kvm -cpu host)
# /tmp is ext4: a tmpfs of this kernel can't be mapped to other owners.
truncate -s 8G "$work/disk"
/sbin/mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$work/disk"

mkfifo "$work/console"
timeout -k 5 "$timeout" qemu-system-x86_64 "${accel[@]}" -smp 2 -m "$memory" -display none -no-reboot -nodefaults \
	-kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initrd" \
	-append "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on unipod.cgroup=$cgroup ${kernelargs[*]-}" \
	-drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" -serial "file:$work/console" -serial "file:$work/status" <&- &
qemu=$!
# The console's newlines come as CR LF.
tr -d '\r' <"$work/console" &
reader=$!
ended=0
wait "$qemu" || ended=$?
qemu=
wait "$reader"
status=$(tr -dc 0-9 <"$work/status" || true)
((ended != 124)) || { echo "run.sh: the tests did not finish in $timeout s" >&2; exit 124; }
[[ -n $status ]] || { echo "run.sh: the machine died before the tests ended" >&2; exit 125; }
exit "$status"
