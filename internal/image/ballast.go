package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	ballastFile = "ballast"
	ballastSize = 2 << 20
)

// Deleting needs room, too: databases are written before files go. So a file
// is kept that can be thrown overboard when the disk is full.

// ballast makes sure the file is there. On a full disk it cannot be, which is
// no reason to do nothing.
func (s *Store) ballast() {
	path := filepath.Join(s.cfg.Root, ballastFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = nil // an empty file still keeps an inode
		}
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		s.log.Warn("the disk with the images is full", "path", s.cfg.Root, "error", err)
	}
}

// lighten throws the ballast overboard if there is hardly any room left.
func (s *Store) lighten() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: s.cfg.Root, Err: err}
	}
	if st.Bavail*uint64(st.Frsize) > ballastSize && (st.Files == 0 || st.Ffree > 16) {
		return nil
	}
	err := os.Remove(filepath.Join(s.cfg.Root, ballastFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
