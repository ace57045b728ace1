package kv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/btree"
)

// Backup writes everything as it is at one revision, in a form that Restore
// reads. Writes go on meanwhile.
func (db *DB) Backup(w io.Writer) (revision int64, err error) {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return 0, ErrClosed
	}
	var entries *btree.BTreeG[*Entry]
	entries, revision = db.state.index.Clone(), db.state.revision
	db.mu.Unlock()
	buf := bufio.NewWriterSize(w, 64<<10)
	err = writeSnapshot(buf, revision, func(yield func(*Entry) bool) { entries.Ascend(yield) })
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		return 0, fmt.Errorf("writing the backup: %w", err)
	}
	return revision, nil
}

// Restore replaces what is in a directory by a backup, which is read and
// checked as a whole first. When a process has the directory open, the error
// is a *LockedError; when the backup isn't whole, a *DamageError. After a
// crash the directory holds the one or the other.
//
// The revision goes on behind everything that was, so that no revision means
// two things to a client that remembers.
func Restore(r io.Reader, dir string) (revision int64, err error) {
	s, err := readSnapshot(r, "the backup")
	if err != nil {
		return 0, err
	}
	if err := makeDir(dir); err != nil {
		return 0, err
	}
	l, err := lock(dir)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	last, err := lastRevision(dir)
	if err != nil {
		return 0, err
	}
	revision = max(s.revision, last) + 1
	path := filepath.Join(dir, fileName(snapshotPrefix, revision))
	err = replaceFile(path, func(w io.Writer) error {
		return writeSnapshot(w, revision, func(yield func(*Entry) bool) { s.index.Ascend(yield) })
	})
	if err != nil {
		return 0, fmt.Errorf("writing %s: %w; nothing was changed", path, err)
	}
	// The newest snapshot counts; what is before it is removed now or by Open.
	if err := removeOlder(dir, revision); err != nil {
		return 0, fmt.Errorf("removing what the backup replaced: %w", err)
	}
	return revision, nil
}

// lastRevision is at least that of a directory's last write, also when files
// are damaged: a restore is what mends them.
func lastRevision(dir string) (int64, error) {
	n, err := readNames(dir)
	if err != nil {
		return 0, fmt.Errorf("the store's directory: %w", err)
	}
	var last int64
	for _, rev := range n.snapshots {
		last = max(last, rev)
	}
	for _, base := range n.logs {
		info, err := os.Stat(filepath.Join(dir, fileName(logPrefix, base)))
		if err != nil {
			return 0, fmt.Errorf("the store's log: %w", err)
		}
		// No operation is shorter than three bytes.
		last = max(last, base+info.Size()/3)
	}
	return last, nil
}
