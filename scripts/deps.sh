#!/bin/bash
# Installs the Debian packages that a task of the Makefile needs, and only
# those that are missing.
#
#   scripts/deps.sh build|arm64|demo|test|containerd|fuzz|cri|kubelet|vm|lint ...
set -euo pipefail

packages_for() {
	case $1 in
	build) echo gcc libc6-dev make ;;
	arm64) echo gcc-aarch64-linux-gnu ;;
	demo) echo gcc libc6-dev make busybox-static ;;
	# docker-registry is the real registry the image tests pull from; the
	# cross compiler and qemu run pause's tests as an arm64 machine would.
	test) echo gcc libc6-dev make busybox-static docker-registry iproute2 nftables procps jq curl gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static ;;
	containerd) echo containerd runc containernetworking-plugins ;;
	fuzz) echo clang libclang-rt-14-dev ;;
	operator) echo busybox-static docker-registry skopeo jq curl iproute2 util-linux ;;
	cri) echo jq curl util-linux ;;
	kubelet) echo busybox-static jq curl iproute2 procps util-linux ;;
	vm) echo busybox-static debootstrap e2fsprogs qemu-system-x86 ;;
	lint) echo shellcheck ;;
	*)
		echo "deps.sh: unknown task $1 (build, arm64, demo, test, containerd, fuzz, operator, cri, kubelet, vm, lint)" >&2
		exit 2
		;;
	esac
}

missing=()
for task in "$@"; do
	for package in $(packages_for "$task"); do
		if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
			missing+=("$package")
		fi
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "deps.sh: this machine has no apt-get; install by hand the equivalents of: ${missing[*]}" >&2
	exit 1
fi
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install=("${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}")
# The package lists may be missing or old: fetch them only when needed.
if ! "${install[@]}" >/dev/null; then
	"${as_root[@]}" apt-get update -qq
	"${install[@]}" >/dev/null
fi
