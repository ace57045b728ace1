package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxFile bounds a file of keys, in bytes.
const maxFile = 1 << 20

// A DamagedError says that a file of keys can't be used.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged (%v): put it back from a backup (unipod restore); "+
		"what depends on it (certificates, tokens, Secrets) can't be used without it, so it isn't made anew", e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// WriteFile replaces a file, readable by its owner only, so that after a crash
// it is the old or the new one. Links are followed: the file they end at is
// replaced.
func WriteFile(path string, text []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	err = writeSynced(f, text)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// sweep removes what a killed WriteFile left in the directory of keys.
func sweep(dir string) error {
	for _, name := range FileNames() {
		left, err := filepath.Glob(filepath.Join(dir, "."+name+".*"))
		if err != nil {
			return err
		}
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("a half-written file of the node's keys: %w", err)
			}
		}
	}
	return nil
}

// writeSynced writes, syncs and closes f.
func writeSynced(f *os.File, text []byte) error {
	_, err := f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// createDir makes a directory with files in it, which appear all at once. dir
// may exist when it is empty.
func createDir(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil { // of one that was killed here
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	for name, text := range files {
		f, err := os.OpenFile(filepath.Join(fresh, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := writeSynced(f, text); err != nil {
			return err
		}
	}
	if err := syncDir(fresh); err != nil {
		return err
	}
	// os.Rename refuses what rename(2) does: to replace an empty directory.
	if err := unix.Rename(fresh, dir); err != nil {
		return &os.LinkError{Op: "rename", Old: fresh, New: dir, Err: err}
	}
	return syncDir(filepath.Dir(dir))
}

// private refuses a directory that others may look into.
func private(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("the node's keys: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the node's keys: %s is no directory", dir)
	}
	return ownOnly(dir, info)
}

func ownOnly(path string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("others may use %s (mode %04o), and with it the node's keys: find out who could have read them, then chmod go= %s", path, mode, path)
	}
	return nil
}

// readFile reads a file of keys.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &DamagedError{Path: path, Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("the node's keys: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("the node's keys: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &DamagedError{Path: path, Err: errors.New("it is no regular file")}
	}
	if err := ownOnly(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("the node's keys: %w", err)
	}
	if len(text) > maxFile {
		return nil, &DamagedError{Path: path, Err: fmt.Errorf("larger than %d bytes", maxFile)}
	}
	return text, nil
}
