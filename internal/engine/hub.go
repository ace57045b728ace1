package engine

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/util/sets"
)

// maxBacklog is the backlog of a reader from which on it is thinned out: old
// records go, and of each pod's statuses all but the last.
const maxBacklog = 4096

// hub hands events to any number of watchers. A publisher never waits.
type hub struct {
	mu       sync.Mutex
	watchers sets.Set[*watcher]
}

func (h *hub) publish(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		w.add(ev)
	}
}

// register makes a watcher of everything published from now on.
func (h *hub) register() *watcher {
	w := &watcher{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = sets.New[*watcher]()
	}
	h.watchers.Insert(w)
	return w
}

// deliver hands a watcher's events out until ctx ends, and then forgets it.
func (h *hub) deliver(ctx context.Context, w *watcher) <-chan Event {
	out := make(chan Event)
	go func() {
		defer close(out)
		defer func() {
			h.mu.Lock()
			h.watchers.Delete(w)
			h.mu.Unlock()
		}()
		for {
			ev, ok := w.next()
			if !ok {
				select {
				case <-ctx.Done():
					return
				case <-w.wake:
				}
				continue
			}
			select {
			case <-ctx.Done():
				return
			case out <- ev:
			}
		}
	}()
	return out
}

// watcher is the queue of one reader, in order of publication.
type watcher struct {
	mu    sync.Mutex
	queue []Event
	limit int // the length at which it is compacted next
	wake  chan struct{}
}

func (w *watcher) add(ev Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) >= max(w.limit, maxBacklog) {
		w.compact()
		w.limit = 2 * len(w.queue)
	}
	w.queue = append(w.queue, ev)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// compact keeps the latest status of each pod, all removals, and the newer
// half of the records.
func (w *watcher) compact() {
	latest := map[PodUID]int{}
	records := 0
	for i, ev := range w.queue {
		switch ev.Type {
		case StatusChanged:
			latest[ev.Pod.UID] = i
		case Recorded:
			records++
		}
	}
	drop := records / 2
	kept := w.queue[:0]
	for i, ev := range w.queue {
		switch ev.Type {
		case StatusChanged:
			if latest[ev.Pod.UID] != i {
				continue
			}
		case Recorded:
			if drop > 0 {
				drop--
				continue
			}
		}
		kept = append(kept, ev)
	}
	clear(w.queue[len(kept):])
	w.queue = kept
}

func (w *watcher) next() (Event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		w.queue = nil
		return Event{}, false
	}
	ev := w.queue[0]
	w.queue[0] = Event{}
	w.queue = w.queue[1:]
	return ev, true
}
