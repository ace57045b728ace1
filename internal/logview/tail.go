package logview

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// readAtOnce bounds what one look at one container reads, so that a chatty
// one doesn't keep the others waiting.
const readAtOnce = 256 << 10

// A tail is the reading position in one container's logs.
type tail struct {
	container string
	dir       string

	file    *os.File
	restart int
	unread  []byte            // the beginning of an entry whose end isn't written yet
	parts   map[string][]byte // by stream: the parts of a line so far
	last    map[string]Line   // by stream: time and restart of these parts
}

func newTail(dir string) *tail {
	return &tail{container: filepath.Base(dir), dir: dir, restart: -1, parts: map[string][]byte{}, last: map[string]Line{}}
}

func (t *tail) close() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
}

// read returns the lines written since the last call, and whether there is
// more to read at once.
func (t *tail) read() ([]Line, bool, error) {
	var lines []Line
	for budget := readAtOnce; budget > 0; {
		if t.file == nil {
			if ok, err := t.advance(); !ok || err != nil {
				return lines, false, err
			}
		}
		// The successor is looked for before the rest is read: what is
		// written to this file after its successor has content is nothing.
		next, err := t.successor()
		if err != nil {
			return lines, false, err
		}
		n, err := t.chunk(&lines, budget)
		budget -= n
		if err != nil {
			return lines, false, err
		}
		if n > 0 {
			continue
		}
		if next == nil {
			return lines, false, nil
		}
		f, err := openLog(filepath.Join(t.dir, next.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated meanwhile; it is found under its new name
		}
		if err != nil {
			return lines, false, err
		}
		if opened, err := f.Stat(); err != nil || !os.SameFile(opened, next.info) {
			f.Close()
			continue // rotated meanwhile: this is a later one
		}
		t.close()
		t.file, t.restart, t.unread = f, next.restart, nil
	}
	return lines, true, nil
}

// chunk reads up to budget bytes of the current file and parses the whole
// entries among them.
func (t *tail) chunk(lines *[]Line, budget int) (int, error) {
	buf := make([]byte, min(budget, 64<<10))
	n, err := t.file.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("reading the log: %w", err)
	}
	t.unread = append(t.unread, buf[:n]...)
	rest := t.unread
	for {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			break
		}
		t.entry(lines, line)
		rest = after
	}
	if len(rest) > MaxLine { // no writer of this format does that
		t.entry(lines, rest)
		rest = nil
	}
	t.unread = slices.Clone(rest)
	return n, nil
}

// entry adds one entry to the lines; what isn't an entry is shown as it is,
// rather than lost.
func (t *tail) entry(lines *[]Line, b []byte) {
	e, err := ParseEntry(b)
	if err != nil {
		e = Entry{Stream: "stdout", Text: b}
	}
	text := append(t.parts[e.Stream], e.Text...)
	line := Line{Container: t.container, Restart: t.restart, Time: e.Time, Stream: e.Stream}
	if e.Partial && len(text) < MaxLine {
		t.parts[e.Stream] = text
		t.last[e.Stream] = line
		return
	}
	delete(t.parts, e.Stream)
	line.Text = slices.Clone(text)
	*lines = append(*lines, line)
}

// flush hands out lines whose last part never came.
func (t *tail) flush() []Line {
	var lines []Line
	for _, stream := range []string{"stdout", "stderr"} {
		if text, ok := t.parts[stream]; ok {
			line := t.last[stream]
			line.Text = text
			lines = append(lines, line)
			delete(t.parts, stream)
		}
	}
	return lines
}

// advance opens the first log file there is.
func (t *tail) advance() (bool, error) {
	restarts, err := t.restarts()
	if err != nil || len(restarts) == 0 {
		return false, err
	}
	names, err := t.files(restarts[0])
	if err != nil {
		return false, err
	}
	if len(names) == 0 {
		return false, nil
	}
	f, err := openLog(filepath.Join(t.dir, names[0]))
	if errors.Is(err, fs.ErrNotExist) {
		return t.advance() // rotated or removed meanwhile
	}
	if err != nil {
		return false, err
	}
	now, err := t.files(restarts[0])
	if err != nil || len(now) == 0 || now[0] != names[0] {
		f.Close()
		if err != nil {
			return false, err
		}
		return t.advance() // rotated meanwhile: what was opened may be a later one
	}
	t.file, t.restart = f, restarts[0]
	return true, nil
}

// A next is the file that follows another.
type next struct {
	name    string
	restart int
	info    fs.FileInfo // of the file that is meant, whatever has its name now
}

// successor finds the file that follows the current one. A rotation's new
// file counts once it has content, because the runtime makes it before it
// leaves the old one; a restart ends the file before it in any case.
func (t *tail) successor() (*next, error) {
	current, err := t.file.Stat()
	if err != nil {
		return nil, err
	}
	for {
		names, err := t.files(t.restart)
		if err != nil {
			return nil, err
		}
		found, err := t.after(current, names)
		if err != nil {
			return nil, err
		}
		// A rotation while we looked gives a later file the name of the one
		// that is meant; it also adds a name.
		again, err := t.files(t.restart)
		if err != nil || slices.Equal(names, again) {
			return found, err
		}
	}
}

// after finds what follows the current file, of whose restart names are the
// files.
func (t *tail) after(current fs.FileInfo, names []string) (*next, error) {
	at := slices.IndexFunc(names, func(name string) bool {
		info, err := os.Lstat(filepath.Join(t.dir, name))
		return err == nil && os.SameFile(info, current)
	})
	switch {
	case at >= 0:
		names = names[at+1:]
	case len(names) > 0: // ours was removed: only the newest is surely unread
		names = names[len(names)-1:]
	}
	for _, name := range names {
		if info, err := os.Lstat(filepath.Join(t.dir, name)); err == nil && info.Size() > 0 {
			return &next{name, t.restart, info}, nil
		}
	}
	restarts, err := t.restarts()
	if err != nil {
		return nil, err
	}
	for _, r := range restarts {
		if r <= t.restart {
			continue
		}
		names, err := t.files(r)
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			continue
		}
		if info, err := os.Lstat(filepath.Join(t.dir, names[0])); err == nil {
			return &next{names[0], r, info}, nil
		}
	}
	return nil, nil
}

// restarts lists the restart numbers that have log files, ascending.
func (t *tail) restarts() ([]int, error) {
	entries, err := readDir(t.dir)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, e := range entries {
		number, _, ok := strings.Cut(e.Name(), ".log")
		if n, err := strconv.Atoi(number); ok && err == nil && n >= 0 && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, nil
}

// files lists the log files of one restart, the oldest first. Compressed and
// unfinished rotations are left out: they are older than anything unread.
func (t *tail) files(restart int) ([]string, error) {
	entries, err := readDir(t.dir)
	if err != nil {
		return nil, err
	}
	name := strconv.Itoa(restart) + ".log"
	var rotated []string
	current := false
	for _, e := range entries {
		switch {
		case e.Name() == name:
			current = true
		case strings.HasPrefix(e.Name(), name+".") && !strings.HasSuffix(e.Name(), ".gz") && !strings.HasSuffix(e.Name(), ".tmp"):
			rotated = append(rotated, e.Name())
		}
	}
	slices.Sort(rotated)
	if current {
		rotated = append(rotated, name)
	}
	return rotated, nil
}

// readDir lists a directory; one that is gone is empty.
func readDir(dir string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}
