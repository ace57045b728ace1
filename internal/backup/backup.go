// Package backup is the file that `unipod backup` writes and `unipod restore`
// reads: a zip archive with the API's objects, as the store writes them, and
// the node's keys, without which Secrets and certificates are worth nothing.
//
// It promises that a file which isn't whole is never restored from, and that
// after a restore was interrupted [Check] says so until it is repeated. The
// file is as secret as the keys in it: whoever writes it sees to its mode.
//
// Floor: 7, over pki and store.
package backup

import (
	"archive/zip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
)

// Directories below a node's root.
const (
	Keys    = "pki"
	Objects = "api"
)

const (
	aboutName   = "unipod.json"
	keysPrefix  = "pki/"
	objectsName = "api/objects"
	markName    = "restoring"

	version = 1
	// maxKeys bounds what is read of the keys, in bytes.
	maxKeys = 4 << 20
)

// About says what a backup is of.
type About struct {
	Version  int       `json:"version"`
	Time     time.Time `json:"time"`
	Node     string    `json:"node"`
	Unipod   string    `json:"unipod"`
	Revision int64     `json:"revision"` // of the objects
}

// Write writes a backup of the keys below root and of the objects of a store,
// which may be in use.
func Write(w io.Writer, root string, objects *store.Store, about About) error {
	keys, err := pki.ReadFiles(filepath.Join(root, Keys))
	if err != nil {
		return err
	}
	z := zip.NewWriter(w)
	for _, name := range pki.FileNames() {
		f, err := z.Create(keysPrefix + name)
		if err != nil {
			return err
		}
		if _, err := f.Write(keys[name]); err != nil {
			return err
		}
	}
	f, err := z.Create(objectsName)
	if err != nil {
		return err
	}
	if about.Revision, err = objects.Backup(f); err != nil {
		return err
	}
	about.Version = version
	if f, err = z.Create(aboutName); err != nil {
		return err
	}
	if err := json.NewEncoder(f).Encode(about); err != nil {
		return err
	}
	return z.Close()
}

// Restore replaces keys and objects below root, where no node may run, by those
// of a backup, which is checked first.
func Restore(file, root string, clk clock.WithTicker) (*About, error) {
	z, err := zip.OpenReader(file)
	if err != nil {
		return nil, fmt.Errorf("%s is no whole backup: %w", file, err)
	}
	defer z.Close()
	about, keys, objects, err := parse(&z.Reader)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	stream, err := objects.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer stream.Close()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	staged, err := pki.Stage(filepath.Join(root, Keys), keys, clk)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer staged.Discard()
	mark := filepath.Join(root, markName)
	if err := pki.WriteFile(mark, []byte(file+"\n")); err != nil {
		return nil, err
	}
	if _, err := store.Restore(stream, filepath.Join(root, Objects)); err != nil {
		// Nothing was changed yet.
		return nil, errors.Join(err, os.Remove(mark))
	}
	if err := staged.Commit(); err != nil {
		return nil, fmt.Errorf("the objects are restored and the keys aren't; restore again: %w", err)
	}
	return about, os.Remove(mark)
}

// Check is an error when a restore below root was interrupted.
func Check(root string) error {
	from, err := os.ReadFile(filepath.Join(root, markName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("restoring from %s was interrupted, objects and keys below %s may not belong together: run unipod restore again: %w",
		strings.TrimSpace(string(from)), root, errdefs.ErrFailedPrecondition)
}

// parse finds what a backup must have, and nothing else.
func parse(z *zip.Reader) (about *About, keys map[string][]byte, objects *zip.File, err error) {
	keys = map[string][]byte{}
	for _, f := range z.File {
		key, isKey := strings.CutPrefix(f.Name, keysPrefix)
		switch {
		case f.Name == objectsName && objects == nil:
			objects = f
		case f.Name == aboutName && about == nil:
			text, err := readAll(f)
			if err != nil {
				return nil, nil, nil, err
			}
			if err := json.Unmarshal(text, &about); err != nil || about == nil {
				return nil, nil, nil, fmt.Errorf("%s isn't what unipod backup writes: %w", aboutName, errdefs.ErrInvalidArgument)
			}
		case isKey && keys[key] == nil:
			if keys[key], err = readAll(f); err != nil {
				return nil, nil, nil, err
			}
		default:
			return nil, nil, nil, fmt.Errorf("%q doesn't belong into a backup: %w", f.Name, errdefs.ErrInvalidArgument)
		}
	}
	switch {
	case about == nil || objects == nil:
		return nil, nil, nil, fmt.Errorf("it is no backup of unipod's: %w", errdefs.ErrInvalidArgument)
	case about.Version != version:
		return nil, nil, nil, fmt.Errorf("a backup of version %d, this unipod reads %d: %w", about.Version, version, errdefs.ErrInvalidArgument)
	}
	return about, keys, objects, nil
}

// readAll reads a small file of the archive.
func readAll(f *zip.File) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxKeys+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	if len(text) > maxKeys {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", f.Name, maxKeys, errdefs.ErrInvalidArgument)
	}
	return text, nil
}
