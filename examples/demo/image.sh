#!/bin/bash
# Makes a container image out of Debian's busybox-static, without a registry
# and without a builder: a docker-archive is a tar of a tar and two JSON files.
#
#   image.sh NAME:TAG OUT.tar [CMD]
#
# CMD is what its containers run when they name no command, in JSON; a shell by
# default.
set -euo pipefail
name=$1 out=$2 cmd=${3:-'["sh"]'}

busybox=$(command -v busybox) || {
	echo "image.sh: busybox is missing (Debian: apt install busybox-static)" >&2
	exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The root file system: busybox and its links.
root=$work/root
mkdir -p "$root"/{bin,etc,proc,sys,dev,root,www}
mkdir -m 1777 "$root/tmp"
cp "$busybox" "$root/bin/busybox"
chmod 0755 "$root/bin/busybox"
"$busybox" --list | while read -r applet; do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\ndemo:x:1000:1000:demo:/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\ndemo:x:1000:\n' >"$root/etc/group"

# The same input gives the same image.
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$1" -cf "$2" "${@:3}"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

mkdir "$work/image"
pack "$root" "$work/image/layer.tar" .
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac
cat >"$work/config.json" <<EOF
{"architecture":"$arch","os":"linux","created":"1970-01-01T00:00:00Z",
 "config":{"Env":["PATH=/bin"],"Cmd":$cmd,"WorkingDir":"/"},
 "rootfs":{"type":"layers","diff_ids":["sha256:$(sum "$work/image/layer.tar")"]}}
EOF
config=$(sum "$work/config.json").json
mv "$work/config.json" "$work/image/$config"
echo "[{\"Config\":\"$config\",\"RepoTags\":[\"$name\"],\"Layers\":[\"layer.tar\"]}]" >"$work/image/manifest.json"
pack "$work/image" "$out" "$config" layer.tar manifest.json
