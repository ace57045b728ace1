package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// FileNames are the files of a directory of keys.
func FileNames() []string { return []string{caFile, frontFile, accountFile, encryptionFile} }

// ReadFiles reads the files of a directory of keys, for a backup.
func ReadFiles(dir string) (map[string][]byte, error) {
	if err := private(dir); err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, name := range FileNames() {
		text, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = text
	}
	return files, nil
}

// A Staged directory of keys is beside the one it will replace.
type Staged struct{ dir, staged string }

// Stage writes keys beside dir, and checks that they can be used.
func Stage(dir string, files map[string][]byte, clk clock.WithTicker) (*Staged, error) {
	if names := slices.Sorted(maps.Keys(files)); !slices.Equal(names, slices.Sorted(slices.Values(FileNames()))) {
		return nil, fmt.Errorf("the keys are %q, not %q", names, FileNames())
	}
	s := &Staged{dir: dir, staged: dir + ".restored"}
	if err := errors.Join(os.RemoveAll(s.staged), createDir(s.staged, files)); err != nil {
		return nil, err
	}
	if _, err := Load(s.staged, clk); err != nil {
		return nil, errors.Join(err, s.Discard())
	}
	return s, nil
}

// Commit puts the staged keys in the place of the old ones, at once.
func (s *Staged) Commit() error {
	err := unix.Renameat2(unix.AT_FDCWD, s.staged, unix.AT_FDCWD, s.dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, fs.ErrNotExist) { // there were none
		err = os.Rename(s.staged, s.dir)
	}
	if err != nil {
		return fmt.Errorf("putting keys in their place: %w", err)
	}
	return syncDir(filepath.Dir(s.dir))
}

// Discard removes what is staged, which after Commit are the old keys.
func (s *Staged) Discard() error { return os.RemoveAll(s.staged) }
