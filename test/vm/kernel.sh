# Sourced by run.sh and systemd.sh.
# shellcheck shell=bash
#
# fetch_kernel DIR prints the directory below DIR of Debian's cloud kernel, which is
# extracted there the first time and not installed; its modules' index is made
# once. Callers hold a lock on DIR.
fetch_kernel() {
	local package dir
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
	[[ -n $package ]] || { echo "apt knows no linux-image-cloud-amd64; run apt-get update" >&2; return 1; }
	dir=$1/$package
	if [[ ! -e $dir/done ]]; then
		echo "downloading $package" >&2
		rm -rf "$dir"
		mkdir -p "$dir"
		(cd "$dir" && apt-get download -qq "$package" 2>/dev/null && dpkg-deb -x ./*.deb . && rm ./*.deb)
		touch "$dir/done"
	fi
	echo "$dir"
}
