package kv

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type names struct {
	snapshots, logs []int64 // revisions, ascending
	temps           []string
}

func readNames(dir string) (names, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return names{}, err
	}
	var n names
	for _, e := range entries {
		if rev, ok := fileRevision(e.Name(), snapshotPrefix); ok {
			n.snapshots = append(n.snapshots, rev)
		} else if rev, ok := fileRevision(e.Name(), logPrefix); ok {
			n.logs = append(n.logs, rev)
		} else if strings.HasSuffix(e.Name(), tempSuffix) {
			n.temps = append(n.temps, e.Name())
		}
	}
	slices.Sort(n.snapshots)
	slices.Sort(n.logs)
	return n, nil
}

// recoverDir reads a directory's files, and makes the first when there are
// none.
func recoverDir(dir string, historyBytes int64, log *slog.Logger) (*state, *disk, error) {
	n, err := readNames(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("the store's directory: %w", err)
	}
	for _, name := range n.temps {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return nil, nil, fmt.Errorf("an unfinished file of the store: %w", err)
		}
	}
	s := emptyState()
	if len(n.snapshots) > 0 {
		rev := n.snapshots[len(n.snapshots)-1]
		if s, err = readSnapshotFile(filepath.Join(dir, fileName(snapshotPrefix, rev)), rev); err != nil {
			return nil, nil, err
		}
		if err := removeOlder(dir, rev); err != nil {
			return nil, nil, fmt.Errorf("removing what the store's snapshot replaced: %w", err)
		}
		n.logs = slices.DeleteFunc(n.logs, func(r int64) bool { return r < rev })
	}
	d := &disk{dir: dir}
	for i, base := range n.logs {
		path := filepath.Join(dir, fileName(logPrefix, base))
		if base < s.revision {
			if err := removeAbandoned(path, log); err != nil {
				d.drop()
				return nil, nil, err
			}
			continue
		}
		if base != s.revision {
			d.drop()
			return nil, nil, &DamageError{path, 0, fmt.Sprintf("it continues revision %d, but what is before it ends with revision %d: a file is missing", base, s.revision)}
		}
		if err := d.replay(path, s, n.logs[i+1:], historyBytes, log); err != nil {
			d.drop()
			return nil, nil, err
		}
	}
	if d.f == nil {
		if d.f, d.h, err = createLog(dir, s.revision); err != nil {
			return nil, nil, err
		}
		d.base, d.size = s.revision, headerSize
	}
	return s, d, nil
}

// removeAbandoned removes a log that was made and then not used, because making
// it failed: the log before it went on.
func removeAbandoned(path string, log *slog.Logger) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the store's log: %w", err)
	}
	if info.Size() > headerSize {
		return &DamageError{path, headerSize, "the log before it has the same revisions"}
	}
	log.Warn("a log that was never used is removed", "file", path)
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("the store's log: %w", err)
	}
	return nil
}

// last says whether nothing was ever written behind a log that ends with a
// revision: those that follow were made and not used.
func (d *disk) last(following []int64, revision int64) bool {
	for _, base := range following {
		info, err := os.Stat(filepath.Join(d.dir, fileName(logPrefix, base)))
		if err != nil || info.Size() > headerSize || base > revision {
			return false
		}
	}
	return true
}

// drop closes the log that was read.
func (d *disk) drop() {
	if d.f != nil {
		d.f.Close()
	}
}

// replay applies a log to the state and keeps it open to be appended to,
// unless it was never begun.
func (d *disk) replay(path string, s *state, following []int64, historyBytes int64, log *slog.Logger) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("opening the store's log: %w", err)
	}
	defer func() {
		if d.f != f {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("the store's log: %w", err)
	}
	var first [headerSize]byte
	n, err := io.ReadFull(f, first[:])
	if n < headerSize && d.last(following, s.revision) && (err == io.EOF || err == io.ErrUnexpectedEOF) {
		// Nothing was ever acknowledged from a log without a header.
		log.Warn("a log that was never begun is removed", "file", path)
		return os.Remove(path)
	}
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("reading the store's log: %w", err)
	}
	h, err := decodeHeader(first[:n], kindLog)
	if err != nil {
		return &DamageError{path, 0, err.Error()}
	}
	if h.revision != s.revision {
		return &DamageError{path, 0, fmt.Sprintf("its name says revision %d, its header %d", s.revision, h.revision)}
	}
	fr := frames{h: h, r: bufio.NewReaderSize(f, 64<<10), offset: headerSize}
	for {
		at := fr.offset
		frame, err := fr.next()
		if err == io.EOF {
			break
		}
		var t *torn
		if errors.As(err, &t) {
			if err := cut(f, path, h, at, info.Size(), d.last(following, s.revision), t, log); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return fmt.Errorf("reading the store's log %s: %w", path, err)
		}
		ops, err := frame.operations()
		if err == nil && frame.revision != s.revision+1 {
			err = fmt.Errorf("revision %d follows revision %d", frame.revision, s.revision)
		}
		if err != nil {
			return &DamageError{path, at, err.Error()}
		}
		for _, op := range ops {
			s.apply(op, 0)
		}
		s.forget(historyBytes, time.Duration(-1))
	}
	if d.f != nil {
		d.older += d.size
		d.f.Close()
	}
	d.f, d.h, d.base, d.size, d.allocated = f, h, h.revision, fr.offset, 0
	return nil
}

// cut removes a torn record from the end of a log. A crash can tear only what
// was written last, and never what was acknowledged: where whole records
// follow, or another log does, the file was damaged by something else.
func cut(f *os.File, path string, h header, at, size int64, last bool, t *torn, log *slog.Logger) error {
	if !last {
		return &DamageError{path, at, t.reason + ", and another log continues it"}
	}
	rest := make([]byte, size-at)
	if _, err := f.ReadAt(rest, at); err != nil {
		return fmt.Errorf("reading the store's log %s: %w", path, err)
	}
	if next, found := h.search(rest); found {
		return &DamageError{path, at, fmt.Sprintf("%s, and whole records follow at %d", t.reason, at+int64(next))}
	}
	log.Warn("a write that was not acknowledged is cut off", "file", path, "offset", at, "bytes", size-at, "why", t.reason)
	if err := f.Truncate(at); err != nil {
		return fmt.Errorf("cutting off an unfinished write: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cutting off an unfinished write: %w", err)
	}
	return nil
}

func readSnapshotFile(path string, revision int64) (*state, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the store's snapshot: %w", err)
	}
	defer f.Close()
	s, err := readSnapshot(f, path)
	if err != nil {
		return nil, err
	}
	if s.revision != revision {
		return nil, &DamageError{path, 0, fmt.Sprintf("its name says revision %d, its header %d", revision, s.revision)}
	}
	return s, nil
}

// readSnapshot reads a snapshot, which must be whole and the only thing in r.
func readSnapshot(r io.Reader, name string) (*state, error) {
	r = bufio.NewReaderSize(r, 64<<10)
	var first [headerSize]byte
	n, err := io.ReadFull(r, first[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	h, err := decodeHeader(first[:n], kindSnapshot)
	if err != nil {
		return nil, &DamageError{name, 0, err.Error()}
	}
	s := newState(h.revision)
	fr := frames{h: h, r: r, offset: headerSize}
	before := ""
	for number := int64(1); ; number++ {
		at := fr.offset
		frame, err := fr.next()
		var t *torn
		switch {
		case err == io.EOF:
			return nil, &DamageError{name, at, "it ends too early"}
		case errors.As(err, &t):
			return nil, &DamageError{name, at, t.reason}
		case err != nil:
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if len(frame.payload) == 0 {
			if frame.revision != h.revision || int64(frame.count) != number-1 {
				return nil, &DamageError{name, at, "its end is not of this file"}
			}
			break
		}
		if frame.revision != number {
			return nil, &DamageError{name, at, "a record is missing"}
		}
		err = frame.entries(func(e *Entry) error {
			if e.Key <= before || e.Revision > h.revision {
				return errPayload
			}
			before = e.Key
			s.restore(e)
			return nil
		})
		if err != nil {
			return nil, &DamageError{name, at, err.Error()}
		}
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		return nil, &DamageError{name, fr.offset, "something follows its end"}
	}
	return s, nil
}
