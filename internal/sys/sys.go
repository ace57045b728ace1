// Package sys is unipod's thin, typed layer over the Linux system calls that
// golang.org/x/sys/unix leaves raw: the mount API of file descriptors and
// path resolution confined to a root.
//
// It owns no state. Every function is one system call or a short, obvious
// sequence of them; errors wrap the errno and name the call and its object.
// Every descriptor it returns is close-on-exec and owned by the caller.
//
// Floor: the ground. It imports nothing of unipod.
package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OpenInRoot opens path as a process whose root directory is root would see
// it: "..", absolute and relative symbolic links cannot leave root, and magic
// links (those of procfs) are refused. See openat2(2), RESOLVE_IN_ROOT.
func OpenInRoot(root *os.File, path string, flags int, mode os.FileMode) (*os.File, error) {
	return openat2(root, path, flags, mode, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// OpenBeneath opens path below dir and refuses any symbolic link on the way
// and any path that would leave dir. Use it where the tree is ours and a link
// in it is an attack.
func OpenBeneath(dir *os.File, path string, flags int, mode os.FileMode) (*os.File, error) {
	return openat2(dir, path, flags, mode, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
}

func openat2(dir *os.File, path string, flags int, mode os.FileMode, resolve uint64) (*os.File, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode.Perm())
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), path)), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			// EAGAIN: a rename elsewhere raced with the resolution of "..".
			continue
		}
		return nil, &os.PathError{Op: "openat2", Path: filepath.Join(dir.Name(), path), Err: err}
	}
}

// ProcPath names an open file by descriptor, for the calls that only take a
// path. It is valid in this process, while f is open.
func ProcPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
