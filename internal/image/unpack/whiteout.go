package unpack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// whiteout hides name of the layers below. What this layer itself has under
// the name stays, wherever in the archive it stands; a directory of its own
// becomes opaque, because it replaces the one below.
func (l *Layer) whiteout(parent int, name string) error {
	if name == "" || name == "." || name == ".." {
		return invalid("a whiteout of %q is invalid", name)
	}
	if l.opts.Base {
		return nil
	}
	err := unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	st, err := lstat(parent, name)
	if err != nil || !isDir(st) {
		return err
	}
	return setOpaque(parent, name)
}

// markOpaque hides all that the layers below have in the directory dir.
func (l *Layer) markOpaque(fd int, dir string) error {
	if l.opts.Base {
		return nil
	}
	if dir == "" {
		// Overlayfs merges the roots of its layers in any case.
		l.opaque = true
		return nil
	}
	return unix.Setxattr(procPath(fd), opaqueXattr, []byte("y"), 0)
}

func setOpaque(parent int, base string) error {
	fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Setxattr(procPath(fd), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("setting %s: %w", opaqueXattr, err)
	}
	return nil
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
