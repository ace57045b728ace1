package image

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Progress is a snapshot of a pull or load. Snapshots are complete, so that
// any of them may be missed.
type Progress struct {
	// Ref is the reference as it was normalized.
	Ref   string
	Phase Phase
	// Layers are the image's layers from the base up, once they are known.
	Layers []LayerProgress
}

// Phase of a pull or load.
type Phase string

const (
	Resolving Phase = "Resolving" // asking registries for the manifest
	Pulling   Phase = "Pulling"   // downloading and unpacking layers
	Storing   Phase = "Storing"   // syncing the layers to the disk
	Complete  Phase = "Complete"
)

// LayerProgress is how far one layer is. Current and Total are compressed
// bytes of what Status says is going on.
type LayerProgress struct {
	Digest         digest.Digest
	Status         LayerStatus
	Current, Total int64
}

// LayerStatus is what is being done with a layer.
type LayerStatus string

const (
	LayerPending     LayerStatus = "Pending"
	LayerDownloading LayerStatus = "Downloading"
	LayerUnpacking   LayerStatus = "Unpacking"
	LayerDone        LayerStatus = "Done"
	LayerExists      LayerStatus = "Already exists"
)

// progressEvery bounds how often byte counts are reported; changes of status
// are reported at once.
const progressEvery = 100 * time.Millisecond

// tracker collects the progress of one operation for those who watch it.
// Observers are called one at a time, with no lock of the caller's held.
type tracker struct {
	mu        sync.Mutex
	state     Progress
	last      time.Time
	now       func() time.Time
	nextID    int
	observers map[int]func(Progress)
}

func newTracker(ref string, now func() time.Time) *tracker {
	return &tracker{state: Progress{Ref: ref, Phase: Resolving}, now: now, observers: make(map[int]func(Progress))}
}

// watch calls f with every snapshot until stop is called; after stop has
// returned f is not called any more.
func (t *tracker) watch(f func(Progress)) (stop func()) {
	if f == nil {
		return func() {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	id := t.nextID
	t.nextID++
	t.observers[id] = f
	f(t.snapshot())
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.observers, id)
	}
}

func (t *tracker) snapshot() Progress {
	p := t.state
	p.Layers = append([]LayerProgress(nil), p.Layers...)
	return p
}

func (t *tracker) notify() {
	if len(t.observers) == 0 {
		return
	}
	t.last = t.now()
	for _, f := range t.observers {
		f(t.snapshot())
	}
}

func (t *tracker) phase(p Phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Phase = p
	t.notify()
}

func (t *tracker) layers(l []LayerProgress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Phase, t.state.Layers = Pulling, l
	t.notify()
}

// layer sets the status of layer i and its byte count to current.
func (t *tracker) layer(i int, status LayerStatus, current int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &t.state.Layers[i]
	l.Status, l.Current = status, current
	t.notify()
}

// advance sets the byte count of layer i.
func (t *tracker) advance(i int, current int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Layers[i].Current = current
	if t.now().Sub(t.last) >= progressEvery {
		t.notify()
	}
}
