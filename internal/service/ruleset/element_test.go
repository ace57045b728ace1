package ruleset

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestPlaced: whatever changes, each backend has one index, none is free, and
// those that can stay do.
func TestPlaced(t *testing.T) {
	pool := make([]netip.AddrPort, 12)
	for i := range pool {
		pool[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var before []netip.AddrPort
	for range 2000 {
		want := []netip.AddrPort{}
		for _, b := range pool {
			if r.IntN(2) == 0 {
				want = append(want, b)
			}
		}
		got := placed(before, want)
		sorted := slices.SortedFunc(slices.Values(got), netip.AddrPort.Compare)
		if !slices.Equal(sorted, want) {
			t.Fatalf("from %v to %v: %v", before, want, got)
		}
		for i, b := range before {
			if i < len(got) && slices.Contains(want, b) && got[i] != b {
				t.Fatalf("from %v to %v: %v moved to another index in %v", before, want, b, got)
			}
		}
		before = got
	}
}

// TestDifference: a value that changes goes and comes.
func TestDifference(t *testing.T) {
	gone, come := difference(
		elements{{"a", "stays"}: "1", {"a", "goes"}: "1", {"a", "changes"}: "1"},
		elements{{"a", "stays"}: "1", {"a", "comes"}: "1", {"a", "changes"}: "2"},
	)
	slices.SortFunc(gone, func(a, b id) int { return len(a.key) - len(b.key) })
	if !slices.Equal(gone, []id{{"a", "goes"}, {"a", "changes"}}) {
		t.Errorf("gone: %v", gone)
	}
	if len(come) != 2 || come[id{"a", "comes"}] != "1" || come[id{"a", "changes"}] != "2" {
		t.Errorf("come: %v", come)
	}
}
