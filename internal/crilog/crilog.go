// Package crilog writes container log files in the format the CRI prescribes
// and kubelet, crictl and log shippers read:
//
//	2016-10-06T00:17:09.669794202Z stdout F the log content
//
// where F marks a full line and P a part of a line longer than [MaxLine]. See
// https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
//
// It promises that a line given to [Stream.Write] is in the file (in the
// page cache, not synced) when Write returns, whole, and in the order of the
// stream; that [Log.Reopen] loses none; and that a file system that is full
// never blocks the container: lines that can't be written are counted and
// dropped, and the next line that can be says how many were lost.
//
// Floor: 1. It imports nothing of unipod.
package crilog

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxLine is the length in bytes at which a line is cut into parts, as
// containerd's and CRI-O's default.
const MaxLine = 16 * 1024

// Log is one container's log file. Its methods may be called concurrently.
type Log struct {
	path string

	mu      sync.Mutex
	file    *os.File // nil when there is none to write to
	dropped uint64
	closed  bool
}

// Open opens the log at path for appending, making its directory (0755) when
// it is missing: a restarted runtime goes on where it stopped. An empty path
// gives a Log that discards.
func Open(path string) (*Log, error) {
	l := &Log{path: path}
	if path == "" {
		return l, nil
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	l.file = f
	return l, nil
}

// Resume is [Open] for a container that runs already: a log that can't be
// opened is an error, and a Log nevertheless, which counts the lines lost until
// [Log.Reopen] succeeds.
func Resume(path string) (*Log, error) {
	l, err := Open(path)
	if err != nil {
		return &Log{path: path}, err
	}
	return l, nil
}

func open(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the log directory: %w", err)
	}
	// O_NOFOLLOW: what a log shipper or a hostPath pod put in this place must
	// not make us write elsewhere.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening the log file: %w", err)
	}
	return f, nil
}

// Reopen closes the file and opens the path anew: what a rotation calls after
// it renamed the file. On error the old file stays in use.
func (l *Log) Reopen() error {
	if l.path == "" {
		return nil
	}
	f, err := open(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return f.Close()
	}
	old := l.file
	l.file = f
	if old == nil {
		return nil
	}
	return old.Close()
}

// Close ends the log; what is written later is discarded.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return f.Close()
}

// write appends lines, whole or not at all, so that a disk that fills in the
// middle of a line leaves no torn one behind.
func (l *Log) write(b []byte, lines uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(b) == 0 || l.closed || l.path == "":
		return
	case l.file == nil:
		l.dropped += lines
		return
	}
	if l.dropped > 0 {
		note := appendEntry(nil, stamp(time.Now()), "stderr", 'F',
			fmt.Appendf(nil, "unipod: %d log lines were lost: the log could not be written", l.dropped))
		if !l.append(note) {
			l.dropped += lines
			return
		}
		l.dropped = 0
	}
	if !l.append(b) {
		l.dropped += lines
	}
}

func (l *Log) append(b []byte) bool {
	n, err := l.file.Write(b)
	if err == nil {
		return true
	}
	if n > 0 {
		if size, serr := l.file.Seek(0, 2); serr == nil {
			// The rest of what was written is cut off; when even that fails
			// the reader sees one torn line, which the format's readers skip.
			_ = l.file.Truncate(size - int64(n))
		}
	}
	return false
}

// Stream returns the writer of one of the container's streams, "stdout" or
// "stderr". A Stream is for one goroutine.
func (l *Log) Stream(name string) *Stream { return &Stream{log: l, name: name} }

// Stream turns a byte stream into log entries.
type Stream struct {
	log  *Log
	name string
	rest []byte // the beginning of a line whose end hasn't come
	out  []byte
}

// Write takes the next bytes of the stream. It never fails: see the package
// comment for what happens to lines that can't be written.
func (s *Stream) Write(p []byte) (int, error) {
	now, lines, total := stamp(time.Now()), uint64(0), len(p)
	for len(p) > 0 {
		end, tag := bytes.IndexByte(p, '\n'), byte('F')
		line, skip := p, len(p)
		if end >= 0 {
			line, skip = p[:end], end+1
		}
		if room := MaxLine - len(s.rest); len(line) > room {
			line, skip, tag = line[:room], room, 'P'
		} else if end < 0 {
			s.rest = append(s.rest, p...)
			break
		}
		if len(s.rest) > 0 {
			s.rest = append(s.rest, line...)
			line = s.rest
		}
		s.out = appendEntry(s.out, now, s.name, tag, line)
		s.rest = s.rest[:0]
		p = p[skip:]
		lines++
	}
	s.flush(lines)
	if len(s.rest) == 0 {
		s.rest = nil // an idle container holds no buffer
	}
	return total, nil
}

// Close writes what is left of an unfinished line as a full one.
func (s *Stream) Close() error {
	if len(s.rest) > 0 {
		s.out = appendEntry(s.out, stamp(time.Now()), s.name, 'F', s.rest)
		s.rest = nil
		s.flush(1)
	}
	return nil
}

func (s *Stream) flush(lines uint64) {
	s.log.write(s.out, lines)
	s.out = nil
}

func stamp(t time.Time) []byte {
	return t.UTC().AppendFormat(make([]byte, 0, 32), time.RFC3339Nano)
}

func appendEntry(b, stamp []byte, stream string, tag byte, line []byte) []byte {
	b = append(b, stamp...)
	b = append(b, ' ')
	b = append(b, stream...)
	b = append(b, ' ', tag, ' ')
	b = append(b, line...)
	return append(b, '\n')
}
