package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// RemoveTree removes what containers have written into a directory, and the
// directory. It follows no link on the way, and goes however deep it is. The
// directory it is in is trusted. What is not there is removed.
func RemoveTree(dir string) error {
	parent, err := os.Open(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := removeAll(parent, filepath.Base(dir)); err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}

// MakeTree makes an empty directory that any container may write into, below
// one that only we may enter, and has it on disk when it returns.
func MakeTree(dir string) error {
	above := filepath.Dir(dir)
	if err := os.MkdirAll(above, 0o700); err != nil {
		return err
	}
	parent, err := os.Open(above)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), filepath.Base(dir), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	d, err := sys.OpenBeneath(parent, filepath.Base(dir), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	// The mode is not left to the umask.
	if err := d.Chmod(0o777); err != nil {
		return err
	}
	return errors.Join(d.Sync(), parent.Sync())
}
