package logview

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"unipod.dev/unipod/internal/crilog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseEntry(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"2016-10-06T00:17:09.669794202Z stdout F hello world", "stdout F hello world"},
		{"2016-10-06T00:17:09.669794202Z stderr P part", "stderr P part"},
		{"2016-10-06T00:17:09.669794202Z stdout F ", "stdout F "},
		{"2016-10-06T00:17:09.669794202Z stdout F", "stdout F "},
		{"2016-10-06T02:17:09+02:00 stdout F:more x", "stdout F x"},
		{"", "error"},
		{"2016-10-06T00:17:09.669794202Z", "error"},
		{"yesterday stdout F x", "error"},
		{"2016-10-06T00:17:09Z stdlog F x", "error"},
		{"2016-10-06T00:17:09Z stdout X x", "error"},
	} {
		e, err := ParseEntry([]byte(tc.in))
		got := "error"
		if err == nil {
			tag := "F"
			if e.Partial {
				tag = "P"
			}
			got = fmt.Sprintf("%s %s %s", e.Stream, tag, e.Text)
		}
		if got != tc.want {
			t.Errorf("ParseEntry(%q) = %q (%v), want %q", tc.in, got, err, tc.want)
		}
	}
}

// A script is a pod's log directory as it changes, and what a reader says.
type script struct {
	t    *testing.T
	dir  string
	f    *Follower
	got  []string
	tick int
}

func newScript(t *testing.T, opts Options) *script {
	dir := filepath.Join(t.TempDir(), "default_web_uid")
	f, err := Follow(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &script{t: t, dir: dir, f: f}
}

func (s *script) path(name string) string { return filepath.Join(s.dir, name) }

// write appends raw text; in it, @ stands for the next second's time stamp.
func (s *script) write(name, text string) {
	s.t.Helper()
	for strings.Contains(text, "@") {
		s.tick++
		text = strings.Replace(text, "@", time.Unix(int64(s.tick), 0).UTC().Format(time.RFC3339Nano), 1)
	}
	if err := os.MkdirAll(filepath.Dir(s.path(name)), 0o755); err != nil {
		s.t.Fatal(err)
	}
	f, err := os.OpenFile(s.path(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) rename(from, to string) {
	s.t.Helper()
	if err := os.Rename(s.path(from), s.path(to)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) each(l Line) error {
	s.got = append(s.got, fmt.Sprintf("%s/%d %s", l.Container, l.Restart, l.Text))
	return nil
}

func (s *script) expect(want ...string) {
	s.t.Helper()
	s.got = nil
	if err := s.f.Drain(s.each); err != nil {
		s.t.Fatal(err)
	}
	if fmt.Sprint(s.got) != fmt.Sprint(want) {
		s.t.Errorf("got  %q\nwant %q", s.got, want)
	}
}

func TestGrows(t *testing.T) {
	s := newScript(t, Options{})
	s.expect()
	s.write("a/0.log", "@ stdout F one\n@ stderr F two\n")
	s.expect("a/0 one", "a/0 two")
	s.write("a/0.log", "@ stdout F th")
	s.expect()
	s.write("a/0.log", "ree\n@ stdout P lo\n@ stderr F between\n@ stdout P n\n")
	s.expect("a/0 three", "a/0 between")
	s.write("a/0.log", "@ stdout F g\n")
	s.expect("a/0 long")
	s.write("a/0.log", "not an entry\n@ stdout F \n")
	s.expect("a/0 not an entry", "a/0 ")
}

func TestContainersByTime(t *testing.T) {
	s := newScript(t, Options{})
	s.write("b/0.log", "@ stdout F 1\n")
	s.write("a/0.log", "@ stdout F 2\n@ stdout F 3\n")
	s.write("b/0.log", "@ stdout F 4\n")
	s.expect("b/0 1", "a/0 2", "a/0 3", "b/0 4")
}

// A clock set back must not reorder one container's own lines.
func TestClockBackwards(t *testing.T) {
	s := newScript(t, Options{})
	s.write("a/0.log", "2026-01-02T00:00:00Z stdout F first\n2026-01-01T00:00:00Z stdout F second\n")
	s.write("b/0.log", "2026-01-01T12:00:00Z stdout F other\n")
	s.expect("b/0 other", "a/0 first", "a/0 second")
}

func TestRestartAndRotation(t *testing.T) {
	s := newScript(t, Options{})
	s.write("a/0.log", "@ stdout F 1\n")
	s.expect("a/0 1")
	s.rename("a/0.log", "a/0.log.20260101-000000")
	s.write("a/0.log.20260101-000000", "@ stdout F 2, by the runtime that hasn't reopened yet\n")
	s.expect("a/0 2, by the runtime that hasn't reopened yet")
	s.write("a/0.log", "")
	s.write("a/0.log.20260101-000000", "@ stdout F 3, between its open and its switch\n")
	s.expect("a/0 3, between its open and its switch")
	s.write("a/0.log", "@ stdout F 4\n")
	s.expect("a/0 4")

	// Two rotations between two looks.
	s.rename("a/0.log", "a/0.log.20260102-000000")
	s.write("a/0.log", "@ stdout F 5\n")
	s.rename("a/0.log", "a/0.log.20260103-000000")
	s.write("a/0.log", "@ stdout F 6\n")
	s.write("a/1.log", "@ stdout F 7\n")
	s.expect("a/0 5", "a/0 6", "a/1 7")

	// A run without output, then one that rotates while it is read.
	s.write("a/2.log", "")
	s.expect()
	s.write("a/3.log", "@ stdout F 8\n")
	s.expect("a/3 8")

	// The old ones are compressed and removed.
	s.write("a/3.log.20260104-000000.gz", "\x1f\x8b")
	if err := os.Remove(s.path("a/3.log")); err != nil {
		t.Fatal(err)
	}
	s.write("a/3.log", "@ stdout F 9\n")
	s.expect("a/3 9")
}

func TestStartsInTheMiddle(t *testing.T) {
	s := newScript(t, Options{Since: time.Unix(3, 0)})
	s.write("a/0.log.20260101-000000", "@ stdout F 1\n@ stdout F 2\n")
	s.write("a/0.log", "@ stdout F 3\n")
	s.write("a/1.log", "@ stdout F 4\n")
	s.expect("a/0 3", "a/1 4")
}

func TestWanted(t *testing.T) {
	s := newScript(t, Options{Wanted: func(name string) bool { return name == "b" }})
	s.write("a/0.log", "@ stdout F no\n")
	s.write("b/0.log", "@ stdout F yes\n")
	s.expect("b/0 yes")
}

// What a container with a hostPath volume could put in the place of its log
// is refused, not followed and not waited for.
func TestNotAFile(t *testing.T) {
	for _, plant := range []func(path string) error{
		func(p string) error { return os.Symlink("/etc/passwd", p) },
		func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		s := newScript(t, Options{})
		if err := os.MkdirAll(s.path("a"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := plant(s.path("a/0.log")); err != nil {
			t.Fatal(err)
		}
		if err := s.f.Drain(s.each); err == nil || len(s.got) > 0 {
			t.Errorf("Drain = %v, got %q", err, s.got)
		}
	}
}

// Run against the real writer, rotated while it writes: no line is lost,
// doubled or out of order.
func TestRunWithRotations(t *testing.T) {
	s := newScript(t, Options{})
	const lines, rotations = 5000, 20
	l, err := crilog.Open(s.path("a/0.log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	seen := 0
	go func() {
		done <- s.f.Run(ctx, func(l Line) error {
			seen++
			if got := string(l.Text); got != fmt.Sprint("line ", seen) {
				return fmt.Errorf("got %q as line %d", got, seen)
			}
			return nil
		})
	}()
	out := l.Stream("stdout")
	for i := 1; i <= lines; i++ {
		fmt.Fprintf(out, "line %d\n", i)
		if i%(lines/rotations) == 0 {
			s.rename("a/0.log", fmt.Sprintf("a/0.log.2026%04d", i/(lines/rotations)))
			if err := l.Reopen(); err != nil {
				t.Fatal(err)
			}
		}
	}
	out.Write([]byte("line 5001")) // and one that never ends
	out.Close()
	l.Close()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if seen != lines+1 {
		t.Errorf("%d lines of %d", seen, lines+1)
	}
}

func TestEachEndsRun(t *testing.T) {
	s := newScript(t, Options{})
	s.write("a/0.log", "@ stdout F 1\n")
	enough := errors.New("enough")
	if err := s.f.Run(t.Context(), func(Line) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Run = %v", err)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte("2016-10-06T00:17:09.669794202Z stdout F hello"))
	f.Add([]byte("2016-10-06T00:17:09Z stderr P:x "))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEntry(b)
		if err == nil && e.Stream != "stdout" && e.Stream != "stderr" {
			t.Errorf("stream %q", e.Stream)
		}
	})
}

// FuzzTail: whatever a file holds, reading it ends and loses no text.
func FuzzTail(f *testing.F) {
	f.Add([]byte("2016-10-06T00:17:09Z stdout P a\n2016-10-06T00:17:09Z stdout F b\nrubbish\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := filepath.Join(t.TempDir(), "c")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "0.log"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		tl := newTail(dir)
		defer tl.close()
		for {
			_, more, err := tl.read()
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				break
			}
		}
		tl.flush()
	})
}
