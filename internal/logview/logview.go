// Package logview reads the log files of a pod's containers as they are
// written: the CRI's line format, kubelet's file layout
//
//	<pod directory>/<container>/<restart>.log
//	<pod directory>/<container>/<restart>.log.<time of rotation>
//
// It promises each line once, lines of one container in the order they were
// written, across restarts and rotations, and lines of different containers
// that were read together in the order of their time stamps. Parts of long
// lines are joined, up to [MaxLine] bytes.
//
// It only reads, and survives anything a file may hold: a container's output
// is foreign input. Floor: 8, beside the runtime; it imports nothing of
// unipod.
package logview

import (
	"bytes"
	"fmt"
	"time"
)

// MaxLine is the length in bytes at which the joined parts of a line are
// handed on as they are: one endless line must not fill the memory.
const MaxLine = 1 << 20

// A Line is one line of a container's output.
type Line struct {
	Container string
	Restart   int       // how often the container had been restarted
	Time      time.Time // of the line's last part
	Stream    string    // "stdout" or "stderr"
	Text      []byte    // without the newline
}

// An Entry is one line of a log file: a line of output or a part of one.
type Entry struct {
	Time    time.Time
	Stream  string
	Partial bool
	Text    []byte // aliases the input
}

// ParseEntry reads one line of a log file, without its newline.
func ParseEntry(b []byte) (Entry, error) {
	var e Entry
	stamp, rest, ok := bytes.Cut(b, []byte{' '})
	if !ok {
		return e, fmt.Errorf("log entry %.40q: no stream after the time stamp", b)
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return e, fmt.Errorf("log entry %.40q: the time stamp isn't RFC 3339", b)
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || (string(stream) != "stdout" && string(stream) != "stderr") {
		return e, fmt.Errorf("log entry %.40q: expected stdout or stderr after the time stamp", b)
	}
	// The tag and the text; an empty line may end right after the tag.
	tags, text, _ := bytes.Cut(rest, []byte{' '})
	// More tags may follow the first after a colon (CRI, LogTag).
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(tag) {
	case "F":
	case "P":
		e.Partial = true
	default:
		return e, fmt.Errorf("log entry %.40q: expected the tag F or P", b)
	}
	e.Time, e.Stream, e.Text = t, string(stream), text
	return e, nil
}
