#!/bin/bash
# unipod as systemd's service, as a user installs it: a Debian 12 with systemd,
# logind and cgroup v2 boots in a virtual machine, where systemd-check installs,
# starts, restarts and kills the service, and lives through a shutdown and a
# power cut.
#
#   test/vm/systemd.sh UNIPOD
#
# Needs root (for debootstrap), qemu-system-x86, debootstrap, busybox-static and
# e2fsprogs; the first time also Debian's mirror, for the kernel and the system, which
# are kept in $UNIPOD_VM_CACHE (~/.cache/unipod/vm). The processor is emulated;
# UNIPOD_VM_ACCEL=kvm uses KVM. What the machine says is on standard output.
set -euo pipefail
unipod=$(readlink -f "$1")
here=$(cd "$(dirname "$0")" && pwd)
repo=$here/../..
# shellcheck source=test/vm/kernel.sh
. "$here/kernel.sh"
cache=${UNIPOD_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/unipod/vm}
mkdir -p "$cache"
work=$(mktemp -d)
qemu=
finish() {
	[[ -z $qemu ]] || kill "$qemu" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT

kernel=$(flock "$cache" bash -c "$(declare -f fetch_kernel); fetch_kernel '$cache'")
release=$(basename "$kernel"/lib/modules/*)

# The system, as Debian's installer would make it, but small.
fetch_system() {
	[[ ! -e $1/debian.tar ]] || return 0
	echo "making a Debian system" >&2
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libpam-systemd,kmod,iproute2,procps \
		bookworm "$2/debian" >"$2/debootstrap.log" || { cat "$2/debootstrap.log" >&2; return 1; }
	rm -rf "$2"/debian/usr/share/{doc,man,locale} "$2"/debian/var/{cache/apt,lib/apt/lists}/*
	tar -C "$2/debian" -cf "$1/debian.tar.part" .
	mv "$1/debian.tar.part" "$1/debian.tar"
	rm -rf "$2/debian"
}
flock "$cache" bash -c "$(declare -f fetch_system); set -e; fetch_system '$cache' '$work'"

# What `make install` does, and what the checks need.
root=$work/root
mkdir -p "$root"
tar -C "$root" -xf "$cache/debian.tar"
install -D -m 0755 "$unipod" "$root/usr/local/bin/unipod"
install -d "$root/usr/local/lib/systemd/system"
sed 's|@BINDIR@|/usr/local/bin|' "$repo/systemd/unipod.service" >"$root/usr/local/lib/systemd/system/unipod.service"
"$repo/examples/demo/image.sh" localhost/unipod-demo:1 "$root/root/image.tar" >/dev/null
install -m 0755 "$here/systemd-check" "$root/root/check"
cp -a "$kernel/lib/modules" "$root/usr/lib/"
chroot "$root" depmod "$release"
printf 'unipod-vm\n' >"$root/etc/hostname"
printf '127.0.0.1 localhost unipod-vm\n' >"$root/etc/hosts"
printf 'nameserver 192.0.2.53\n' >"$root/etc/resolv.conf"
cat >"$root/etc/systemd/system/check.service" <<-END
	[Unit]
	After=multi-user.target
	DefaultDependencies=no
	Conflicts=shutdown.target
	Before=shutdown.target
	[Service]
	Environment=HOME=/root
	ExecStart=/root/check
	StandardOutput=tty
	StandardError=tty
	TTYPath=/dev/ttyS0
	KillMode=process
END
truncate -s 6G "$work/disk"
/sbin/mkfs.ext4 -q -F -d "$root" "$work/disk"
rm -rf "$root"

# The kernel's driver of the disk is a module.
initrd=$work/initrd.d
mkdir -p "$initrd"/{bin,proc,dev,new,lib/modules/"$release"}
cp "$(command -v busybox)" "$initrd/bin/busybox"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
	find "$kernel/lib/modules/$release" -name "$module.ko" -exec cp {} "$initrd/lib/" \;
done
cat >"$initrd/init" <<-'END'
	#!/bin/busybox sh
	b=/bin/busybox
	$b mount -t devtmpfs dev /dev
	for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
		[ ! -e /lib/$m.ko ] || $b insmod /lib/$m.ko
	done
	for try in 1 2 3 4 5 6 7 8 9 10; do [ ! -b /dev/vda ] || break; $b sleep 0.2; done
	$b mount -t ext4 /dev/vda /new
	$b umount /dev
	exec $b switch_root /new /sbin/init
END
chmod +x "$initrd/init"
(cd "$initrd" && find . | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$work/initrd"

accel=(-accel "tcg,thread=multi" -cpu max)
[[ ${UNIPOD_VM_ACCEL:-tcg} != kvm ]] || accel=(-accel kvm -cpu host)
# Each boot ends with the machine: one that reboots itself exits qemu.
: >"$work/status"
for stage in installed rebooted powercut; do
	echo "== boot: $stage"
	mkfifo "$work/console"
	timeout -k 5 900 qemu-system-x86_64 "${accel[@]}" -smp 2 -m 2048 -display none -no-reboot -nodefaults \
		-kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initrd" \
		-append "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on root=/dev/vda rw systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service systemd.wants=check.service check.stage=$stage" \
		-drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" -serial "file:$work/console" -serial "file:$work/status" <&- &
	qemu=$!
	sed -u 's|\r$||' <"$work/console" &
	reader=$!
	ended=0
	wait "$qemu" || ended=$?
	qemu=
	wait "$reader"
	rm "$work/console"
	((ended != 124)) || { echo "systemd.sh: boot $stage did not end" >&2; exit 124; }
	status=$(tr -dc 0-9 <"$work/status" || true)
	[[ $status = 0 ]] || { echo "systemd.sh: boot $stage: ${status:-the machine died}" >&2; exit 1; }
done
