package imagegc

import (
	"math"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func ids(list []Image) string {
	var all []string
	for _, i := range list {
		all = append(all, i.ID)
	}
	return strings.Join(all, " ")
}

// TestOrder: what was never used goes first, then what was used longest ago;
// what is used, pinned or young stays.
func TestOrder(t *testing.T) {
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	p := Default
	p.MaxAge = 10 * time.Minute
	image := func(id string) Image { return Image{ID: id, Size: 100} }
	used := func(id string) Image { return Image{ID: id, Size: 100, InUse: true} }
	pinned := Image{ID: "pause", Pinned: true}

	s := Observe(State{}, at(0), []Image{used("web"), used("db"), image("never"), pinned})
	if got := ids(Space(p, s, at(0))); got != "" {
		t.Errorf("at the first look: %q", got)
	}
	s = Observe(s, at(2*time.Minute), []Image{image("web"), used("db"), image("never"), pinned, image("young")})
	if got := ids(Space(p, s, at(2*time.Minute))); got != "never web" {
		t.Errorf("after two minutes: %q", got)
	}
	if got := ids(Old(p, s, at(2*time.Minute))); got != "" {
		t.Errorf("old after two minutes: %q", got)
	}
	s = Observe(s, at(5*time.Minute), []Image{image("web"), image("db"), image("never"), pinned, image("young")})
	if got := ids(Space(p, s, at(5*time.Minute))); got != "never young web db" {
		t.Errorf("after five minutes: %q", got)
	}
	s = Observe(s, at(11*time.Minute), []Image{image("web"), image("db"), image("never"), pinned, image("young")})
	if got := ids(Old(p, s, at(11*time.Minute))); got != "never web" {
		t.Errorf("old after eleven minutes: %q", got)
	}
	// What is gone is forgotten: it is new when it comes back.
	s = Observe(s, at(12*time.Minute), []Image{pinned})
	s = Observe(s, at(12*time.Minute+time.Second), []Image{image("web"), pinned})
	if got := ids(Space(p, s, at(13*time.Minute))); got != "" {
		t.Errorf("an image pulled anew: %q", got)
	}
}

func TestExcess(t *testing.T) {
	for _, c := range []struct {
		capacity, available, want int64
		percent                   int
	}{
		{1000, 500, 0, 50},
		{1000, 160, 0, 84},
		{1000, 151, 49, 85},
		{1000, 150, 50, 85},
		{1000, 0, 200, 100},
		{1000, 2000, 0, 0},
		{1000, -5, 200, 100},
		{0, 0, 0, 0},
		{math.MaxInt64, 0, math.MaxInt64 / 100 * 20, 100},
	} {
		p := Default
		got, percent := Excess(p, c.capacity, c.available)
		if got != c.want || percent != c.percent {
			t.Errorf("%d of %d: %d, %d%%", c.available, c.capacity, got, percent)
		}
	}
	if got, _ := Excess(Policy{High: 100, Low: 80}, 1000, 0); got != 0 {
		t.Errorf("switched off: %d", got)
	}
}

func TestCheck(t *testing.T) {
	for _, p := range []Policy{{High: 101}, {High: -1}, {High: 80, Low: 85}, {High: 80, Low: -1}, {High: 80, Low: 101}, {MinAge: -1}, {MaxAge: -1}, {MinAge: 2, MaxAge: 1}} {
		if p.Check() == nil {
			t.Errorf("%+v passes", p)
		}
	}
	if err := Default.Check(); err != nil {
		t.Error(err)
	}
	if !(Policy{High: 100}).Off() || Default.Off() {
		t.Error("which policies are off")
	}
}

func TestShort(t *testing.T) {
	want := "Insufficient free disk space on the node's image filesystem (90% of 1.5 GiB used). " +
		"Failed to free sufficient space by deleting unused images (freed 7 bytes). " +
		"Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
	if got := Short(90, 3<<29, 7); got != want {
		t.Errorf("%q", got)
	}
	for n, want := range map[int64]string{5: "5 B", 2048: "2.0 KiB", 3 << 20: "3.0 MiB", 5 << 40: "5.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}
