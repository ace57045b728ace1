package kv

import (
	"strings"
	"sync"
)

// A Watch is a place in the past from which events of a key, or of all keys
// with a prefix, are taken. It is for one goroutine.
type Watch struct {
	db     *DB
	target string
	prefix bool
	after  int64
	ready  chan struct{}

	mu sync.Mutex
	// next is the first revision not yet looked at, 0 when everything that has
	// happened was. It is only raised under db.mu's read lock, and only set
	// from 0 under the write lock.
	next int64
}

// Watch begins after a revision: the first event has a higher one, even when
// that is in the future. The target is a key or, ending in "/", a prefix of
// keys. Close ends it.
func (db *DB) Watch(target string, prefix bool, after int64) (*Watch, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return nil, ErrClosed
	}
	if after < db.state.compacted {
		return nil, ErrCompacted
	}
	w := &Watch{db: db, target: target, prefix: prefix, after: after, ready: make(chan struct{}, 1)}
	if after < db.state.revision {
		w.next = after + 1
		w.wake()
	}
	set := db.watches[target]
	if set == nil {
		set = map[*Watch]struct{}{}
		db.watches[target] = set
	}
	set[w] = struct{}{}
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() {
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	set := w.db.watches[w.target]
	delete(set, w)
	if len(set) == 0 {
		delete(w.db.watches, w.target)
	}
}

// Ready receives when Take has something to say.
func (w *Watch) Ready() <-chan struct{} { return w.ready }

// Take returns at most that many events, in order, and the revision up to which
// there are no others. It never waits. When as many events as asked for are
// returned there may be more.
func (w *Watch) Take(most int) (events []*Event, upTo int64, err error) {
	db := w.db
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.closed {
		return nil, 0, ErrClosed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == 0 {
		return nil, max(w.after, db.state.revision), nil
	}
	if w.next <= db.state.compacted {
		return nil, 0, ErrCompacted
	}
	for _, ev := range db.state.since(w.next) {
		if len(events) == most {
			w.next = ev.Revision
			w.wake()
			return events, ev.Revision - 1, nil
		}
		if ev.Revision > w.after && w.matches(ev.Key) {
			events = append(events, ev)
		}
	}
	w.next = 0
	return events, max(w.after, db.state.revision), nil
}

func (w *Watch) matches(key string) bool {
	if w.prefix {
		return strings.HasPrefix(key, w.target)
	}
	return key == w.target
}

func (w *Watch) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// notify wakes who watches an event's key. The caller holds db.mu.
func (db *DB) notify(ev *Event) {
	wake := func(target string) {
		for w := range db.watches[target] {
			w.mu.Lock()
			if w.next == 0 {
				w.next = ev.Revision
			}
			w.mu.Unlock()
			w.wake()
		}
	}
	for i := range len(ev.Key) {
		if ev.Key[i] == '/' {
			wake(ev.Key[:i+1])
		}
	}
	if !strings.HasSuffix(ev.Key, "/") {
		wake(ev.Key)
	}
}
