package logview

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/crilog"
)

const sample = "2026-01-01T00:00:01Z stdout F one\n" +
	"2026-01-01T00:00:02Z stderr F two\n" +
	"2026-01-01T00:00:03Z stdout P thr\n" +
	"2026-01-01T00:00:03Z stdout F ee\n" +
	"2026-01-01T00:00:04.5Z stdout F four\n"

func TestRead(t *testing.T) {
	for name, tc := range map[string]struct {
		text           string
		o              ReadOptions
		out, err, both string
	}{
		"all":    {text: sample, both: "one\ntwo\nthree\nfour\n"},
		"split":  {text: sample, out: "one\nthree\nfour\n", err: "two\n"},
		"tail":   {text: sample, o: ReadOptions{TailLines: ptr.To[int64](1)}, both: "four\n"},
		"tail 0": {text: sample, o: ReadOptions{TailLines: ptr.To[int64](0)}},
		"tail 9": {text: sample, o: ReadOptions{TailLines: ptr.To[int64](9)}, both: "one\ntwo\nthree\nfour\n"},
		"since":  {text: sample, o: ReadOptions{Since: time.Date(2026, 1, 1, 0, 0, 3, 0, time.UTC)}, both: "three\nfour\n"},
		"stamps": {text: sample, o: ReadOptions{Timestamps: true, TailLines: ptr.To[int64](3)},
			both: "2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:04.500000000Z four\n"},
		"limit":        {text: sample, o: ReadOptions{LimitBytes: ptr.To[int64](6)}, both: "one\ntw"},
		"limit exact":  {text: sample, o: ReadOptions{LimitBytes: ptr.To[int64](4)}, both: "one\n"},
		"no end":       {text: sample + "2026-01-01T00:00:05Z stdout F fi", both: "one\ntwo\nthree\nfour\nfi\n"},
		"not an entry": {text: "hello\n", both: "hello\n"},
		"empty":        {},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errs strings.Builder
			if tc.both != "" {
				if err := Read(t.Context(), Run{Path: path}, tc.o, &out, &out); err != nil || out.String() != tc.both {
					t.Errorf("got %q (%v), want %q", out.String(), err, tc.both)
				}
				return
			}
			if err := Read(t.Context(), Run{Path: path}, tc.o, &out, &errs); err != nil || out.String() != tc.out || errs.String() != tc.err {
				t.Errorf("got %q, %q (%v), want %q, %q", out.String(), errs.String(), err, tc.out, tc.err)
			}
		})
	}
}

// lastLines over blocks: what it finds is what counting finds.
func TestLastLines(t *testing.T) {
	var text strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&text, "line %d %s\n", i, strings.Repeat("x", i%37))
	}
	lines := strings.SplitAfter(text.String(), "\n")
	lines = lines[:len(lines)-1]
	for _, n := range []int{1, 2, 1000, 19999, 20000, 20001} {
		at, err := lastLines(strings.NewReader(text.String()), int64(n))
		if want := strings.Join(lines[max(len(lines)-n, 0):], ""); err != nil || text.String()[at:] != want {
			t.Errorf("the last %d lines begin at %d (%v)", n, at, err)
		}
	}
}

// A follower gets every line across rotations, and ends with the run.
func TestReadFollows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	l, err := crilog.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	running := true
	changed := make(chan struct{}, 1)
	opened := make(chan struct{})
	var once sync.Once
	run := Run{Path: path, Changed: changed, Clock: clock.RealClock{}, Running: func(context.Context) (bool, error) {
		once.Do(func() { close(opened) })
		mu.Lock()
		defer mu.Unlock()
		return running, nil
	}}
	var out strings.Builder
	done := make(chan error, 1)
	go func() { done <- Read(t.Context(), run, ReadOptions{Follow: true}, &out, nil) }()
	<-opened
	w := l.Stream("stdout")
	var want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(w, "line %d\n", i)
		fmt.Fprintf(&want, "line %d\n", i)
		if i%400 == 399 {
			if err := os.Rename(path, fmt.Sprintf("%s.2026%04d", path, i)); err != nil {
				t.Fatal(err)
			}
			if err := l.Reopen(); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Close()
	l.Close()
	// A later run is not this one's.
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "1.log"), []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	running = false
	mu.Unlock()
	changed <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != want.String() {
		t.Errorf("got %d bytes, want %d", out.Len(), want.Len())
	}
}
