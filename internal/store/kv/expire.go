package kv

import (
	"container/heap"
	"context"
	"time"
)

// An expiry is a key that ends at some time, if it is still what it was.
type expiry struct {
	key      string
	revision int64
	at       int64
}

type expiries struct{ h expiryHeap }

// add remembers an entry's end and says whether it is the next one.
func (x *expiries) add(e *Entry) bool {
	if e.Expires == 0 {
		return false
	}
	heap.Push(&x.h, expiry{e.Key, e.Revision, e.Expires})
	return x.h[0].revision == e.Revision
}

// due takes what has ended.
func (x *expiries) due(now int64) []expiry {
	var due []expiry
	for len(x.h) > 0 && x.h[0].at <= now {
		due = append(due, heap.Pop(&x.h).(expiry))
	}
	return due
}

type expiryHeap []expiry

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h expiryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *expiryHeap) Push(x any)        { *h = append(*h, x.(expiry)) }
func (h *expiryHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = expiry{}
	*h = (*h)[:last]
	return x
}

// maxTidyWait bounds how long a jump of the wall clock goes unnoticed.
const maxTidyWait = 30 * time.Second

// housekeep deletes keys that have expired and forgets the past that is too
// old.
func (db *DB) housekeep() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	timer := db.clock.NewTimer(maxTidyWait)
	defer timer.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-db.tidy:
		case <-timer.C():
		}
		wait, idle := db.tidyUp(ctx)
		timer.Stop()
		if !idle {
			timer.Reset(wait)
		}
	}
}

// tidyUp does what is due and says when the next will be.
func (db *DB) tidyUp(ctx context.Context) (wait time.Duration, idle bool) {
	now := db.clock.Now().UnixMilli()
	db.mu.Lock()
	due := db.expiry.due(now)
	db.mu.Unlock()
	// All at once, so that they share a sync.
	type deletion struct {
		expiry
		w *write
	}
	var deletions []deletion
	for _, x := range due {
		if w, _, err := db.enqueue(ctx, operation{key: x.key}, x.revision); w != nil {
			deletions = append(deletions, deletion{x, w})
		} else if err != nil {
			break // closed
		}
	}
	for _, d := range deletions {
		<-d.w.done
		if d.w.err == nil {
			continue
		}
		db.log.Debug("an expired key can't be deleted yet", "key", d.key, "err", d.w.err)
		db.mu.Lock()
		db.expiry.add(&Entry{Key: d.key, Revision: d.revision, Expires: now + retryExpiry.Milliseconds()})
		db.mu.Unlock()
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.state.forget(db.cfg.HistoryBytes, db.clock.Since(db.start)-db.cfg.HistoryAge)
	wait, idle = maxTidyWait, true
	if len(db.expiry.h) > 0 {
		idle = false
		wait = min(wait, max(time.Millisecond, time.Duration(db.expiry.h[0].at-db.clock.Now().UnixMilli())*time.Millisecond))
	}
	if len(db.state.past) > 0 {
		idle = false
		wait = min(wait, max(time.Millisecond, db.state.past[db.state.head].at+db.cfg.HistoryAge-db.clock.Since(db.start)))
	}
	return wait, idle
}
