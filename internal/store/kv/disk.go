package kv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/google/btree"
	"golang.org/x/sys/unix"
)

// Files are named by a revision: a log by that before its first, a snapshot by
// its own. What ends in tempSuffix was never finished.
const (
	logPrefix      = "log-"
	snapshotPrefix = "snapshot-"
	tempSuffix     = ".tmp"
)

func fileName(prefix string, revision int64) string { return fmt.Sprintf("%s%016x", prefix, revision) }

// fileRevision is the inverse of fileName.
func fileRevision(name, prefix string) (int64, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	rev, err := strconv.ParseInt(digits, 16, 64)
	return rev, err == nil && fileName(prefix, rev) == name
}

// disk writes a store's files. It belongs to the committer, but for snapshot,
// which runs beside it.
type disk struct {
	dir  string
	f    *os.File // the last log
	h    header
	base int64
	size int64 // of the log, up to which it is synced and whole
	// allocated is up to where the log has blocks of its own, so that writing
	// there can't fail for want of space.
	allocated int64
	// unreserved says that the file system can't give blocks in advance.
	unreserved bool
	// broken says that there may be something behind size.
	broken bool
	buf    []byte

	mu       sync.Mutex
	older    int64 // bytes of the logs before the last that are still needed
	snapping bool
	retryAt  int64 // bytes of all logs before which a failed snapshot isn't tried again
}

// keepBuffer is the largest buffer kept for the next write.
const keepBuffer = 256 << 10

// reserve is what stays free in the log for writes that make nothing new. A
// full disk is emptied by deleting what fills it, which is two writes itself.
const reserve = 1 << 20

// admit says which writes of a batch there is room for. The others fail with
// err and were not tried.
func (d *disk) admit(batch []*write) (admitted, refused []*write, err error) {
	size := int64(frameHeader)
	for _, w := range batch {
		size += int64(w.op.size())
	}
	if d.allocate(d.size+size+reserve) == nil {
		return batch, nil, nil
	}
	size = frameHeader
	for _, w := range batch {
		if w.creates {
			refused = append(refused, w)
			continue
		}
		admitted = append(admitted, w)
		size += int64(w.op.size())
	}
	if err := d.allocate(d.size + size); err != nil {
		return nil, batch, &WriteError{d.f.Name(), err}
	}
	return admitted, refused, &WriteError{d.f.Name(), fmt.Errorf("%w (what is left is kept for deletions and changes)", unix.ENOSPC)}
}

// allocate gives the log blocks up to some place, or says that there are none.
// Whatever else is wrong the write itself will say.
func (d *disk) allocate(end int64) error {
	if d.allocated >= end || d.unreserved {
		return nil
	}
	// More than is asked for, so that few writes have to ask.
	for _, end := range []int64{end + reserve, end} {
		err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, d.size, end-d.size)
		switch err {
		case nil:
			d.allocated = end
			return nil
		case unix.ENOSPC, unix.EDQUOT:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			d.unreserved = true
			return nil
		default:
			return nil
		}
	}
	return unix.ENOSPC
}

// append writes operations and syncs them. When it fails, nothing of them is
// there.
func (d *disk) append(batch []*write, first int64) error {
	if d.broken {
		if err := d.repair(); err != nil {
			return &WriteError{d.f.Name(), err}
		}
	}
	buf := openFrame(d.buf[:0])
	for _, w := range batch {
		buf = w.op.append(buf)
	}
	d.h.seal(buf, len(batch), first)
	if d.buf = buf; cap(buf) > keepBuffer {
		d.buf = nil
	}
	_, err := d.f.WriteAt(buf, d.size)
	if err == nil {
		err = fdatasync(d.f)
	}
	if err != nil {
		d.broken = true
		_ = d.repair() // or before the next write
		return &WriteError{d.f.Name(), err}
	}
	d.size += int64(len(buf))
	return nil
}

// repair removes what a failed write may have left. Were it to stay, what was
// refused might be there after a crash, under a revision given twice.
func (d *disk) repair() error {
	if err := d.f.Truncate(d.size); err != nil {
		return err
	}
	d.allocated = d.size
	if err := d.f.Sync(); err != nil {
		return err
	}
	d.broken = false
	return nil
}

func fdatasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (d *disk) close() error { return d.f.Close() }

// full says whether the logs are longer than limit and can be replaced.
func (d *disk) full(limit int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.snapping && d.older+d.size >= max(limit, d.retryAt)
}

// busy says whether a snapshot is being written.
func (d *disk) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snapping
}

// rotate begins a new log behind a revision. When it succeeds, snapshot must
// be called.
func (d *disk) rotate(revision int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.base != revision {
		f, h, err := createLog(d.dir, revision)
		if err != nil {
			d.retryAt = d.older + d.size + d.size/4
			return err
		}
		d.older += d.size
		d.f.Close()
		d.f, d.h, d.base, d.size, d.allocated = f, h, revision, headerSize, 0
	}
	d.snapping = true
	return nil
}

// createLog makes a log that is there after a crash before anything is
// appended to it.
func createLog(dir string, revision int64) (f *os.File, h header, err error) {
	h = newHeader(kindLog, revision)
	path := filepath.Join(dir, fileName(logPrefix, revision))
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, header{}, fmt.Errorf("making a log: %w", err)
	}
	if _, err = f.Write(h.encode()); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return nil, header{}, fmt.Errorf("making the log %s: %w", path, err)
	}
	return f, h, nil
}

// snapshot writes what is known at a revision and removes what it replaces.
func (d *disk) snapshot(revision int64, entries *btree.BTreeG[*Entry]) (err error) {
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.snapping = false
		if err != nil {
			d.retryAt = d.older + d.older/4
			return
		}
		d.older, d.retryAt = 0, 0
	}()
	path := filepath.Join(d.dir, fileName(snapshotPrefix, revision))
	err = replaceFile(path, func(w io.Writer) error {
		return writeSnapshot(w, revision, func(yield func(*Entry) bool) { entries.Ascend(yield) })
	})
	if err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	return removeOlder(d.dir, revision)
}

// replaceFile writes a file so that after a crash it is whole or not there.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	temp := path + tempSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(temp)
		}
	}()
	buf := bufio.NewWriterSize(f, 64<<10)
	if err = write(buf); err != nil {
		return err
	}
	if err = buf.Flush(); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// removeOlder removes the files whose content a snapshot has.
func removeOlder(dir string, revision int64) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, rev := range names.snapshots {
		if rev < revision {
			if err := os.Remove(filepath.Join(dir, fileName(snapshotPrefix, rev))); err != nil {
				return err
			}
		}
	}
	for _, rev := range names.logs {
		if rev < revision {
			if err := os.Remove(filepath.Join(dir, fileName(logPrefix, rev))); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshotFrame is about how long a snapshot's frames are.
const snapshotFrame = 64 << 10

// writeSnapshot writes entries, as a file and as a backup.
func writeSnapshot(w io.Writer, revision int64, entries func(yield func(*Entry) bool)) error {
	h := newHeader(kindSnapshot, revision)
	_, err := w.Write(h.encode())
	var buf []byte
	count, number := 0, int64(0)
	flush := func(revision int64) {
		if err == nil {
			h.seal(buf, count, revision)
			_, err = w.Write(buf)
		}
		buf, count = openFrame(buf[:0]), 0
	}
	buf = openFrame(nil)
	entries(func(e *Entry) bool {
		buf = e.append(buf)
		if count++; len(buf) >= snapshotFrame {
			number++
			flush(number)
		}
		return err == nil
	})
	if count > 0 {
		number++
		flush(number)
	}
	count = int(number)
	flush(revision)
	return err
}
