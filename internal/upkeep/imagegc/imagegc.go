// Package imagegc decides which images a node can do without. It is pure:
// [Observe] keeps the memory of when images came and were last used, [Old] and
// [Space] choose the ones to remove. It does no I/O and reads no clock.
//
// The semantics are kubelet's (k8s.io/kubernetes v1.37,
// pkg/kubelet/images/image_gc_manager.go): when the images' file system is
// used beyond a high mark, images nobody uses go, the longest unused first,
// until it is below a low mark; young ones, those in use and those the runtime
// has pinned stay.
//
// Floor 5: it imports nothing of unipod.
package imagegc

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// Policy is when images go.
type Policy struct {
	// High is the use of the file system, in percent, from which on images go;
	// Low the use aimed at. 100 for High switches that off.
	High, Low int
	// MinAge is how long an image stays at least.
	MinAge time.Duration
	// MaxAge is how long an unused image stays at most; zero for ever.
	MaxAge time.Duration
}

// Default is kubelet's.
var Default = Policy{High: 85, Low: 80, MinAge: 2 * time.Minute}

// Check tells whether the policy makes sense.
func (p Policy) Check() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case p.High < 0 || p.High > 100:
		return invalid("the high threshold of image garbage collection is %d, which isn't a percentage", p.High)
	case p.Low < 0 || p.Low > 100:
		return invalid("the low threshold of image garbage collection is %d, which isn't a percentage", p.Low)
	case p.Low > p.High:
		return invalid("the low threshold of image garbage collection (%d) is higher than the high one (%d)", p.Low, p.High)
	case p.MinAge < 0 || p.MaxAge < 0:
		return invalid("an age of image garbage collection is negative")
	case p.MaxAge > 0 && p.MaxAge < p.MinAge:
		return invalid("the maximum age of images (%v) is less than their minimum age (%v)", p.MaxAge, p.MinAge)
	}
	return nil
}

// Off tells whether the policy never removes an image by itself.
func (p Policy) Off() bool { return p.High == 100 && p.MaxAge == 0 }

// Image is one the runtime has.
type Image struct {
	ID     string
	Size   int64
	Pinned bool
	InUse  bool // by a container or a volume, running or not
}

// State is the memory of the images.
type State struct {
	began   time.Time // the first observation
	records map[string]record
}

type record struct {
	Image
	detected, used time.Time
}

// Observe takes in the images as they are now. At the first observation all
// are as new.
func Observe(s State, now time.Time, images []Image) State {
	next := State{began: s.began, records: make(map[string]record, len(images))}
	if next.began.IsZero() {
		next.began = now
	}
	for _, img := range images {
		r, known := s.records[img.ID]
		if !known {
			r.detected = now
		}
		r.Image = img
		if img.InUse {
			r.used = now
		}
		next.records[img.ID] = r
	}
	return next
}

// unused are the images nobody needs, the longest unused first, then the
// oldest.
func (s State) unused() []record {
	var list []record
	for _, r := range s.records {
		if !r.InUse && !r.Pinned {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b record) int {
		return cmp.Or(a.used.Compare(b.used), a.detected.Compare(b.detected), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Old chooses the images unused for longer than the policy's maximum age. What
// was used before this node watched is not known, so none goes before it has
// watched that long.
func Old(p Policy, s State, now time.Time) []Image {
	if p.MaxAge == 0 || now.Sub(s.began) <= p.MaxAge {
		return nil
	}
	var list []Image
	for _, r := range s.unused() {
		last := r.used
		if last.Before(r.detected) {
			last = r.detected
		}
		if now.Sub(last) > p.MaxAge {
			list = append(list, r.Image)
		}
	}
	return list
}

// Excess is how many bytes are to be freed on a file system; zero below the
// high mark.
func Excess(p Policy, capacity, available int64) (bytes int64, percent int) {
	if capacity <= 0 {
		return 0, 0
	}
	available = min(max(available, 0), capacity)
	if capacity > math.MaxInt64/100 { // in exabytes, where a hundredth is exact enough
		percent = 100 - int(available/(capacity/100))
	} else {
		percent = 100 - int(available*100/capacity)
	}
	if p.High == 100 || percent < p.High {
		return 0, percent
	}
	aim := capacity / 100 * int64(100-p.Low)
	return max(aim-available, 0), percent
}

// Space lists the images that may go for their space, in order; the caller
// stops when it has freed enough.
func Space(p Policy, s State, now time.Time) []Image {
	var list []Image
	for _, r := range s.unused() {
		if now.Sub(r.detected) >= p.MinAge {
			list = append(list, r.Image)
		}
	}
	return list
}

// Short is kubelet's message of a file system that images can't make room on.
func Short(percent int, capacity, freed int64) string {
	return fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %s used). "+
		"Failed to free sufficient space by deleting unused images (freed %d bytes). "+
		"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
		percent, size(capacity), freed)
}

func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		if f /= 1024; f < 1024 {
			return fmt.Sprintf("%.1f %s", f, unit)
		}
	}
	return fmt.Sprintf("%.1f TiB", f/1024)
}
