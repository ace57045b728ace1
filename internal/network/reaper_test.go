package network

import (
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

func TestDue(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tc := range []struct {
		name        string
		since, busy time.Time
		waiting     int
		want        time.Duration
	}{
		{"nobody sets up", ago(0), ago(time.Hour), 1, -time.Hour + lull},
		{"somebody has just set up", ago(time.Second), ago(0), 1, lull},
		{"somebody always does", ago(longest + 1), ago(0), 1, -1},
		{"soon too long", ago(longest - 7), ago(0), 1, 7},
		{"too many", ago(0), ago(0), plenty, 0},
		{"nearly too many", ago(0), ago(0), plenty - 1, lull},
	} {
		p := &reaper{since: tc.since, busy: tc.busy, waiting: map[string]*record{}}
		for i := range tc.waiting {
			p.waiting[string(rune('a'+i))] = nil
		}
		if got := p.due(now); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A pod that ends while others begin keeps its namespace until there is a lull.
func TestLull(t *testing.T) {
	w := newWorld(t)
	fake := clocktesting.NewFakeClock(time.Now())
	w.Network.Close()
	w.cfg.Clock = fake
	w.open()
	a := w.pod("a")
	if err := w.Teardown(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	link := a.HostVeth
	eventually(t, "the reaper waits", fake.HasWaiters)
	if !w.hasLink(link) {
		t.Error("the link went at once")
	}
	fake.Step(lull - 1)
	w.pod("b") // and the wait begins anew
	fake.Step(2)
	eventually(t, "the reaper waits again", fake.HasWaiters)
	if !w.hasLink(link) {
		t.Error("the link went while another pod was set up")
	}
	fake.Step(lull)
	eventually(t, "the reaper gives the kernel time", fake.HasWaiters)
	fake.Step(collect)
	eventually(t, "the link goes", func() bool { return !w.hasLink(link) })
	// Who waits for it doesn't wait for the clock.
	if err := w.Teardown(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (w *world) hasLink(name string) bool {
	index := 0
	return w.Network.host.do(indexOf(name, &index)) == nil
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 1000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within five seconds", what)
}
