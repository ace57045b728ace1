package logview

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/utils/clock"
)

// ReadOptions are those of a pod's log subresource.
type ReadOptions struct {
	Follow     bool // until the container has ended
	TailLines  *int64
	Since      time.Time // older entries are left out; zero for all
	Timestamps bool
	LimitBytes *int64
}

// A Run is one run of a container, whose log is read.
type Run struct {
	Path string // of its log file: <restart>.log
	// Running tells whether it still runs, so that more may come.
	Running func(context.Context) (bool, error)
	// Changed wakes a follower that waits for the end; nil: it looks now and
	// then.
	Changed <-chan struct{}
	// Idle is told whenever all that there is was written, before a follower
	// waits for more; nil: nobody needs to know.
	Idle  func() error
	Clock clock.WithTicker
}

const (
	// stamp is kubelet's form of time in logs.
	stamp = "2006-01-02T15:04:05.000000000Z07:00"
	// followCheck is how often a follower looks although nothing was reported.
	followCheck = time.Second
)

// errLimit ends a reading that has written all it may.
var errLimit = errors.New("the limit of bytes is reached")

// Read writes one run's log as kubectl logs shows it, rotations included that
// happen meanwhile; a nil writer leaves its stream out. Only what is there when
// it is called is read unless it follows. The end of ctx is no error.
func Read(ctx context.Context, run Run, o ReadOptions, stdout, stderr io.Writer) error {
	restart, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(run.Path), ".log"))
	if err != nil {
		return fmt.Errorf("log file %s: its name is not a number of restarts", run.Path)
	}
	f, err := openLog(run.Path)
	if err != nil {
		return err
	}
	r := &reader{
		tail: tail{dir: filepath.Dir(run.Path), file: f, restart: restart}, o: o,
		out: map[string]io.Writer{"stdout": stdout, "stderr": stderr}, fresh: true, left: -1,
	}
	defer func() { r.tail.close() }()
	if o.LimitBytes != nil {
		r.left = *o.LimitBytes
	}
	if o.TailLines != nil {
		start, err := lastLines(f, *o.TailLines)
		if err == nil {
			_, err = f.Seek(start, io.SeekStart)
		}
		if err != nil {
			return fmt.Errorf("finding the last %d lines of the log: %w", *o.TailLines, err)
		}
	}
	if o.Follow {
		err = r.follow(ctx, run)
	} else {
		err = r.rest(f)
	}
	if errors.Is(err, errLimit) || ctx.Err() != nil {
		return nil
	}
	return err
}

// reader writes the entries of one run.
type reader struct {
	tail  tail // its file, and what follows it
	o     ReadOptions
	out   map[string]io.Writer
	fresh bool  // at the beginning of a line
	left  int64 // bytes that may be written; -1: no limit
}

// rest writes what the file holds now.
func (r *reader) rest(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if err := r.copy(io.LimitReader(f, info.Size()-at)); err != nil {
		return err
	}
	return r.flush()
}

// follow writes what the run says until it has ended.
func (r *reader) follow(ctx context.Context, run Run) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("following the log: %w (fs.inotify.max_user_instances may be too low)", err)
	}
	defer w.Close()
	if err := w.Add(r.tail.dir); err != nil {
		return fmt.Errorf("following the log in %s: %w", r.tail.dir, err)
	}
	ticker := run.Clock.NewTicker(followCheck)
	defer ticker.Stop()
	for {
		// Whether it runs, and what follows its file, is asked before the file
		// is read to its end: after that nothing more comes.
		running, err := run.Running(ctx)
		if err != nil {
			return err
		}
		next, err := r.tail.successor()
		if err != nil {
			return err
		}
		if err := r.copy(r.tail.file); err != nil {
			return err
		}
		if next != nil && next.restart == r.tail.restart {
			if err := r.advance(next); err != nil {
				return err
			}
			continue
		}
		if !running {
			return r.flush()
		}
		if run.Idle != nil {
			if err := run.Idle(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
		case <-w.Errors: // an overflow: everything is looked at anyway
		case <-run.Changed:
		case <-ticker.C():
		}
	}
}

// advance goes on with the file a rotation began. One that was rotated away
// meanwhile is found under its new name at the next look.
func (r *reader) advance(n *next) error {
	f, err := openLog(filepath.Join(r.tail.dir, n.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || !os.SameFile(info, n.info) {
		return f.Close()
	}
	r.tail.close()
	r.tail.file, r.tail.unread = f, nil
	return nil
}

// copy writes the whole entries from src, and keeps the beginning of one that
// isn't whole yet.
func (r *reader) copy(src io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		rest := append(r.tail.unread, buf[:n]...)
		for {
			line, after, ok := bytes.Cut(rest, []byte{'\n'})
			if !ok {
				break
			}
			if err := r.entry(line); err != nil {
				return err
			}
			rest = after
		}
		if len(rest) > MaxLine { // no writer of this format does that
			if err := r.entry(rest); err != nil {
				return err
			}
			rest = nil
		}
		r.tail.unread = append(r.tail.unread[:0:0], rest...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
	}
}

// flush writes an entry whose end was never written.
func (r *reader) flush() error {
	rest := r.tail.unread
	r.tail.unread = nil
	if len(rest) == 0 {
		return nil
	}
	return r.entry(rest)
}

// entry writes one entry. What isn't one is shown rather than lost.
func (r *reader) entry(b []byte) error {
	e, err := ParseEntry(b)
	if err != nil {
		e = Entry{Stream: "stdout", Text: b}
	}
	out := r.out[e.Stream]
	if out == nil || !e.Time.IsZero() && e.Time.Before(r.o.Since) {
		return nil
	}
	var text []byte
	if r.o.Timestamps && r.fresh && !e.Time.IsZero() {
		text = append(e.Time.AppendFormat(text, stamp), ' ')
	}
	text = append(text, e.Text...)
	if !e.Partial {
		text = append(text, '\n')
	}
	r.fresh = !e.Partial
	if r.left >= 0 && int64(len(text)) >= r.left {
		if _, err := out.Write(text[:r.left]); err != nil {
			return err
		}
		return errLimit
	}
	if r.left > 0 {
		r.left -= int64(len(text))
	}
	_, err = out.Write(text)
	return err
}

// lastLines is where the last n lines of a file begin. A line that isn't
// whole counts.
func lastLines(f io.ReadSeeker, n int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || n <= 0 {
		return size, err
	}
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		begin := max(end-int64(len(buf)), 0)
		if _, err := f.Seek(begin, io.SeekStart); err != nil {
			return 0, err
		}
		block := buf[:end-begin]
		if _, err := io.ReadFull(f, block); err != nil {
			return 0, err
		}
		for i := len(block) - 1; i >= 0; i-- {
			if block[i] != '\n' || begin+int64(i) == size-1 {
				continue
			}
			if n--; n == 0 {
				return begin + int64(i) + 1, nil
			}
		}
		end = begin
	}
	return 0, nil
}
