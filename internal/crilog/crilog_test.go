package crilog

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// entries parses a log file into "stream tag content".
func entries(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n"), "\n") {
		_, rest, ok := strings.Cut(line, " ")
		if !ok {
			t.Fatalf("malformed line %q", line)
		}
		out = append(out, rest)
	}
	return out
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for _, tc := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"one line", []string{"hello\n"}, []string{"stdout F hello"}},
		{"split", []string{"he", "llo\nwor", "ld\n"}, []string{"stdout F hello", "stdout F world"}},
		{"empty lines", []string{"\n\n"}, []string{"stdout F ", "stdout F "}},
		{"no end", []string{"a\nb"}, []string{"stdout F a", "stdout F b"}},
		{"exactly full", []string{long + "\n"}, []string{"stdout F " + long}},
		{"too long", []string{long + "y\n"}, []string{"stdout P " + long, "stdout F y"}},
		{"too long in pieces", []string{long[:10], long[10:] + "y", "z\n"}, []string{"stdout P " + long, "stdout F yz"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c", "0.log")
			l, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			s := l.Stream("stdout")
			for _, w := range tc.writes {
				if n, err := s.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			s.Close()
			l.Close()
			if got := entries(t, path); fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("got %.200q\nwant %.200q", got, tc.want)
			}
		})
	}
}

// Two writers and a rotator: every line arrives exactly once, in order.
func TestReopenLosesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	const n = 20000
	var wg sync.WaitGroup
	for _, name := range []string{"stdout", "stderr"} {
		wg.Go(func() {
			s := l.Stream(name)
			var buf []byte
			for i := range n {
				buf = fmt.Appendf(buf, "%d\n", i)
				if rand.IntN(20) == 0 {
					cut := rand.IntN(len(buf) + 1)
					s.Write(buf[:cut])
					buf = append(buf[:0], buf[cut:]...)
				}
			}
			s.Write(buf)
			s.Close()
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	files := []string{}
	for i := 0; ; i++ {
		rotated := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, rotated); err != nil {
			t.Fatal(err)
		}
		files = append(files, rotated)
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
		default:
			if i < 200 {
				continue
			}
			<-done
		}
		break
	}
	l.Close()
	next := map[string]int{}
	for _, f := range append(files, path) {
		if st, err := os.Stat(f); err != nil || st.Size() == 0 {
			continue
		}
		for _, e := range entries(t, f) {
			var stream string
			var v int
			if _, err := fmt.Sscanf(e, "%s F %d", &stream, &v); err != nil {
				t.Fatalf("%q: %v", e, err)
			}
			if v != next[stream] {
				t.Fatalf("%s: line %d where %d was due", stream, v, next[stream])
			}
			next[stream]++
		}
	}
	if next["stdout"] != n || next["stderr"] != n {
		t.Errorf("lines: %v, want %d each", next, n)
	}
}

// A full file system never blocks or tears a line, and the gap is told.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mounting a small tmpfs (needs root): %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "0.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s := l.Stream("stdout")
	line := strings.Repeat("z", 999) + "\n"
	for range 200 {
		s.Write([]byte(line))
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path+".1", 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("after\n"))
	s.Close()
	l.Close()
	got := entries(t, path)
	if len(got) != 2 || !strings.Contains(got[0], "log lines were lost") || got[1] != "stdout F after" {
		t.Errorf("after the disk had room again: %.300q", got)
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("a\nb"), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		path := filepath.Join(t.TempDir(), "l")
		l, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		s := l.Stream("stdout")
		for p := data; len(p) > 0; {
			n := min(int(step)+1, len(p))
			s.Write(p[:n])
			p = p[n:]
		}
		s.Close()
		l.Close()
		b, _ := os.ReadFile(path)
		var back []byte
		for line := range strings.SplitSeq(string(b), "\n") {
			parts := strings.SplitN(line, " ", 4)
			if len(parts) < 4 {
				continue
			}
			back = append(back, parts[3]...)
			if parts[2] == "F" {
				back = append(back, '\n')
			}
		}
		want := string(data)
		if len(data) > 0 && data[len(data)-1] != '\n' {
			want += "\n"
		}
		if string(back) != want {
			t.Errorf("read back %q, want %q", back, want)
		}
	})
}

func BenchmarkStream(b *testing.B) {
	l, _ := Open(filepath.Join(b.TempDir(), "l"))
	s := l.Stream("stdout")
	chunk := []byte(strings.Repeat(strings.Repeat("a", 99)+"\n", 320))
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		s.Write(chunk)
	}
}

// TestResume: a log whose place is taken doesn't keep a container from going
// on, and says later what was lost.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	path, elsewhere := filepath.Join(dir, "0.log"), filepath.Join(dir, "elsewhere")
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	l, err := Resume(path)
	if err == nil || l == nil {
		t.Fatalf("a link was followed: %v, %v", l, err)
	}
	defer l.Close()
	s := l.Stream("stdout")
	s.Write([]byte("one\ntwo\n"))
	if err := l.Reopen(); err == nil {
		t.Error("a link was followed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("three\n"))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(text); !strings.Contains(got, "2 log lines were lost: the log could not be written\n") || !strings.HasSuffix(got, " stdout F three\n") {
		t.Errorf("the log says %q", got)
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("something was written where the link leads")
	}
}
