package static

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

// watching is a directory being watched, on a clock that stands still.
type watching struct {
	t     *testing.T
	dir   string
	clock *clocktesting.FakeClock
	out   chan reading
}

func watch(t *testing.T) *watching {
	t.Helper()
	w := &watching{t: t, dir: filepath.Join(t.TempDir(), "m"), clock: clocktesting.NewFakeClock(time.Now()), out: make(chan reading)}
	d := &directory{path: w.dir, clock: w.clock, log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.watch(ctx, w.out) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w.expect()
	return w
}

func (w *watching) names(r reading) string {
	w.t.Helper()
	if r.err != nil {
		w.t.Fatal(r.err)
	}
	got := []string{}
	for _, p := range r.objects.Pods {
		got = append(got, p.Name)
	}
	return fmt.Sprint(got)
}

// expect waits for a reading with these pods, on a clock that stands still.
func (w *watching) expect(names ...string) {
	w.t.Helper()
	if got := w.names(<-w.out); got != fmt.Sprint(names) {
		w.t.Fatalf("read %v, want %v", got, names)
	}
}

// settles waits for such a reading, which may not come before time has passed.
func (w *watching) settles(names ...string) {
	w.t.Helper()
	for !w.clock.HasWaiters() {
		select {
		case r := <-w.out:
			w.t.Fatalf("read too early: %s", w.names(r))
		case <-time.After(time.Millisecond):
		}
	}
	for {
		select {
		case r := <-w.out:
			// The clock may have moved between two of a change's steps.
			if w.names(r) == fmt.Sprint(names) {
				return
			}
		case <-time.After(time.Millisecond):
			w.clock.Step(settle)
		}
	}
}

func (w *watching) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *watching) path(name string) string { return filepath.Join(w.dir, name) }

// TestWhole: a file is read as soon as it is whole, without waiting.
func TestWhole(t *testing.T) {
	w := watch(t)
	w.must(os.WriteFile(w.path("a.yaml"), []byte(fmt.Sprintf(onePod, "a", "1")), 0o600))
	w.expect("a")
	w.must(os.WriteFile(filepath.Join(filepath.Dir(w.dir), "b"), []byte(fmt.Sprintf(onePod, "b", "1")), 0o600))
	w.must(os.Rename(filepath.Join(filepath.Dir(w.dir), "b"), w.path("b.yaml")))
	w.expect("a", "b")
	w.must(os.WriteFile(w.path("notes.txt"), nil, 0o600)) // nobody's business
	w.must(os.WriteFile(filepath.Join(filepath.Dir(w.dir), "c"), []byte(fmt.Sprintf(onePod, "c", "1")), 0o600))
	w.must(os.Symlink("../c", w.path("c.yaml")))
	w.expect("a", "b", "c")
}

// TestHalf: half a change is none.
func TestHalf(t *testing.T) {
	w := watch(t)
	w.must(os.WriteFile(w.path("a.yaml"), []byte(fmt.Sprintf(onePod, "a", "1")), 0o600))
	w.expect("a")
	// Another file is being written.
	f, err := os.Create(w.path("b.yaml"))
	w.must(err)
	_, err = f.WriteString(fmt.Sprintf(onePod, "b", "1"))
	w.must(err)
	w.must(os.WriteFile(w.path("c.yaml"), []byte(fmt.Sprintf(onePod, "c", "1")), 0o600))
	w.settles("a", "b", "c") // nobody writes any more, it seems
	w.must(f.Close())
	w.expect("a", "b", "c")
	// An editor moves the old file away, then writes the new one.
	w.must(os.Rename(w.path("a.yaml"), w.path("a.yaml~")))
	w.settles("b", "c")
	// What it names may come after it.
	pod := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: i, envFrom: [{configMapRef: {name: late}}]}]}\n", "d")
	w.must(os.WriteFile(w.path("d.yaml"), []byte(pod), 0o600))
	w.settles("b", "c", "d")
}

// TestTakenAway: a directory that goes has no pods, and one that comes back is
// watched again.
func TestTakenAway(t *testing.T) {
	w := watch(t)
	w.must(os.WriteFile(w.path("a.yaml"), []byte(fmt.Sprintf(onePod, "a", "1")), 0o600))
	w.expect("a")
	w.must(os.Rename(w.dir, w.dir+".away"))
	w.settles()
	w.clock.Step(rewatch) // still away
	w.must(os.Rename(w.dir+".away", w.dir))
	w.settles("a")
	w.must(os.WriteFile(w.path("b.yaml"), []byte(fmt.Sprintf(onePod, "b", "1")), 0o600))
	w.expect("a", "b")
}
