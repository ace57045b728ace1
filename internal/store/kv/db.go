package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Config says where a store lives and what it may use. Empty fields mean their
// default.
type Config struct {
	// Dir is the store's own directory, made 0700 when it isn't there. Empty
	// keeps everything in memory.
	Dir   string
	Log   *slog.Logger
	Clock clock.WithTicker

	// HistoryBytes and HistoryAge bound the past that is remembered, default
	// 8 MiB and 5 minutes.
	HistoryBytes int64
	HistoryAge   time.Duration
	// LogBytes is how long a log may grow before it is replaced by a snapshot,
	// if it is also longer than the snapshot would be; default 8 MiB.
	LogBytes int64
}

// MaxValue is the size of the largest value.
const MaxValue = 8 << 20

// maxBatch is about as much as one sync covers: what comes after it waits for
// the next.
const maxBatch = 8 << 20

// retryExpiry is how long an expired key that could not be deleted waits.
const retryExpiry = 5 * time.Second

// DB is an open store.
type DB struct {
	cfg   Config
	log   *slog.Logger
	clock clock.WithTicker
	start time.Time

	mu      sync.RWMutex
	state   *state
	watches map[string]map[*Watch]struct{}
	queue   []*write
	pending map[string]*write // by key, until it is decided
	expiry  expiries
	closed  bool

	work    chan struct{} // the queue may not be empty
	tidy    chan struct{} // there is something to expire or to forget
	stop    chan struct{}
	asked   []chan error // by Condense; mu's
	stopped sync.WaitGroup
	disk    *disk // the committer's own; nil in memory
	lock    *os.File
}

type write struct {
	op      operation
	creates bool // the key is not there yet
	done    chan struct{}
	rev     int64
	err     error
}

// Open opens a store. When another process has it, the error is a
// *LockedError; when a file is damaged, a *DamageError.
func Open(cfg Config) (*DB, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.HistoryBytes == 0 {
		cfg.HistoryBytes = 8 << 20
	}
	if cfg.HistoryAge == 0 {
		cfg.HistoryAge = 5 * time.Minute
	}
	if cfg.LogBytes == 0 {
		cfg.LogBytes = 8 << 20
	}
	db := &DB{
		cfg:     cfg,
		log:     cfg.Log,
		clock:   cfg.Clock,
		start:   cfg.Clock.Now(),
		watches: map[string]map[*Watch]struct{}{},
		pending: map[string]*write{},
		work:    make(chan struct{}, 1),
		tidy:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	if cfg.Dir == "" {
		db.state = emptyState()
	} else {
		err := makeDir(cfg.Dir)
		if err != nil {
			return nil, err
		}
		if db.lock, err = lock(cfg.Dir); err != nil {
			return nil, err
		}
		if db.state, db.disk, err = recoverDir(cfg.Dir, cfg.HistoryBytes, db.log); err != nil {
			db.lock.Close()
			return nil, err
		}
		db.stopped.Go(db.commit)
	}
	db.state.index.Ascend(func(e *Entry) bool {
		db.expiry.add(e)
		return true
	})
	db.stopped.Go(db.housekeep)
	poke(db.tidy)
	return db, nil
}

// Close waits for the writes that are on their way, and ends watches.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	close(db.stop)
	for _, set := range db.watches {
		for w := range set {
			w.wake()
		}
	}
	db.mu.Unlock()
	db.stopped.Wait()
	var err error
	if db.disk != nil {
		err = db.disk.close()
		db.lock.Close()
	}
	return err
}

// Revision is that of the last write.
func (db *DB) Revision() int64 {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.state.revision
}

// Compacted is the revision before which nothing is remembered.
func (db *DB) Compacted() int64 {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.state.compacted
}

// Compact forgets the past up to a revision.
func (db *DB) Compact(revision int64) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.state.compact(revision)
}

// Get returns what a key is now, nil if it isn't there, and the revision that
// is now.
func (db *DB) Get(key string) (*Entry, int64) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.state.get(key), db.state.revision
}

// GetAt returns what a key was at a revision.
func (db *DB) GetAt(key string, revision int64) (*Entry, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if err := db.state.known(revision); err != nil {
		return nil, err
	}
	if then, differs := db.state.differences(revision, func(k string) bool { return k == key })[key]; differs {
		return then, nil
	}
	return db.state.get(key), nil
}

// Page is part of a list.
type Page struct {
	Entries  []*Entry
	Rest     int   // how many follow
	Revision int64 // of which this is the state
}

// List returns at most limit (0: all) entries whose keys begin with prefix and
// are not less than from, as they were at a revision (0: as they are now).
func (db *DB) List(prefix, from string, limit int, revision int64) (Page, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if revision == 0 {
		revision = db.state.revision
	} else if err := db.state.known(revision); err != nil {
		return Page{}, err
	}
	p := Page{Revision: revision}
	db.state.walk(prefix, from, revision, func(e *Entry) bool {
		if limit > 0 && len(p.Entries) == limit {
			p.Rest++
		} else {
			p.Entries = append(p.Entries, e)
		}
		return true
	})
	return p, nil
}

// Size returns how many keys there are with a prefix, and the bytes of their
// values.
func (db *DB) Size(prefix string) (keys int, bytes int64) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	db.state.walk(prefix, "", db.state.revision, func(e *Entry) bool {
		keys++
		bytes += int64(len(e.Value))
		return true
	})
	return keys, bytes
}

// Put writes a key if it is at a revision: 0 says that it must not be there.
// If it isn't, ok is false and now what it is (nil: not there). expires is in
// Unix milliseconds, 0 never. When ctx ends first, the write may be made yet.
func (db *DB) Put(ctx context.Context, key string, value []byte, expires, ifRevision int64) (rev int64, now *Entry, ok bool, err error) {
	if len(value) > MaxValue {
		return 0, nil, false, fmt.Errorf("a value of %d bytes; at most %d are stored", len(value), MaxValue)
	}
	if key == "" {
		return 0, nil, false, errors.New("an empty key")
	}
	// Kept for long: what an encoder's buffer has too much is not.
	if value == nil || cap(value)-len(value) > len(value)/8 {
		value = append(make([]byte, 0, len(value)), value...)
	}
	return db.write(ctx, operation{key: key, value: value, expires: expires}, ifRevision)
}

// Delete deletes a key if it is at a revision, see Put.
func (db *DB) Delete(ctx context.Context, key string, ifRevision int64) (rev int64, now *Entry, ok bool, err error) {
	return db.write(ctx, operation{key: key}, ifRevision)
}

func (db *DB) write(ctx context.Context, op operation, ifRevision int64) (rev int64, now *Entry, ok bool, err error) {
	w, now, err := db.enqueue(ctx, op, ifRevision)
	if w == nil {
		return 0, now, false, err
	}
	select {
	case <-w.done:
		return w.rev, nil, w.err == nil, w.err
	case <-ctx.Done():
		return 0, nil, false, fmt.Errorf("waiting for the disk: %w; the write may be made yet", ctx.Err())
	}
}

// enqueue decides whether a write is made. If w is nil it is not.
func (db *DB) enqueue(ctx context.Context, op operation, ifRevision int64) (w *write, now *Entry, err error) {
	db.mu.Lock()
	// A write of the same key that is on its way decides first: what it makes
	// of the key is only true once it is on disk.
	for {
		if db.closed {
			db.mu.Unlock()
			return nil, nil, ErrClosed
		}
		before := db.pending[op.key]
		if before == nil {
			break
		}
		db.mu.Unlock()
		select {
		case <-before.done:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("waiting for another write of %s: %w; nothing was changed", op.key, ctx.Err())
		}
		db.mu.Lock()
	}
	defer db.mu.Unlock()
	now = db.state.get(op.key)
	if now == nil && ifRevision != 0 || now != nil && now.Revision != ifRevision {
		return nil, now, nil
	}
	w = &write{op: op, creates: now == nil && op.value != nil, done: make(chan struct{})}
	if db.disk == nil {
		db.finish([]*write{w}, nil)
		return w, nil, nil
	}
	db.pending[op.key] = w
	db.queue = append(db.queue, w)
	poke(db.work)
	return w, nil, nil
}

// finish makes writes visible, or not. The caller holds mu.
func (db *DB) finish(writes []*write, err error) {
	at, idle := db.clock.Since(db.start), len(db.state.past) == 0
	for _, w := range writes {
		if w.err = err; err == nil {
			ev := db.state.apply(w.op, at)
			w.rev = ev.Revision
			db.notify(ev)
			if ev.New != nil && db.expiry.add(ev.New) {
				poke(db.tidy)
			}
		}
		delete(db.pending, w.op.key)
		close(w.done)
	}
	if db.state.pastBytes > db.cfg.HistoryBytes {
		db.state.forget(db.cfg.HistoryBytes, 0)
	}
	if idle && len(db.state.past) > 0 {
		poke(db.tidy)
	}
}

// commit is the one goroutine that writes to disk.
func (db *DB) commit() {
	for {
		select {
		case <-db.work:
		case <-db.stop:
		}
		db.mu.Lock()
		batch := db.take()
		first, closed := db.state.revision+1, db.closed
		var asked []chan error
		if closed || !db.disk.busy() {
			asked, db.asked = db.asked, nil
		}
		db.mu.Unlock()
		if len(batch) == 0 && closed {
			for _, a := range asked {
				a <- ErrClosed
			}
			return
		}
		if len(batch) == 0 && len(asked) == 0 {
			continue
		}
		var refused []*write
		var err, refusal error
		if len(batch) > 0 {
			batch, refused, refusal = db.disk.admit(batch)
		}
		if len(batch) > 0 {
			err = db.disk.append(batch, first)
		}
		db.mu.Lock()
		db.finish(batch, err)
		db.finish(refused, refusal)
		if len(db.queue) > 0 {
			poke(db.work)
		}
		revision, live := db.state.revision, db.state.live
		db.mu.Unlock()
		if len(asked) > 0 || err == nil && len(batch) > 0 && db.disk.full(max(db.cfg.LogBytes, live)) {
			db.rotate(revision, asked...)
		}
	}
}

// Condense makes a snapshot of what there is and removes what was written
// before it: nothing on disk tells any more what a value was earlier. It
// returns when that is so; writes go on meanwhile.
func (db *DB) Condense(ctx context.Context) error {
	if db.disk == nil {
		return nil
	}
	done := make(chan error, 1)
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return ErrClosed
	}
	db.asked = append(db.asked, done)
	db.mu.Unlock()
	poke(db.work)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take takes a batch from the queue.
func (db *DB) take() []*write {
	size, n := 0, 0
	for n < len(db.queue) && size < maxBatch {
		size += db.queue[n].op.size()
		n++
	}
	batch := db.queue[:n:n]
	if db.queue = db.queue[n:]; len(db.queue) == 0 {
		db.queue = nil
	}
	return batch
}

// rotate begins a new log and, behind the writes to it, a snapshot of what the
// logs before it say. Only the committer calls it: the revision stays. Who
// asked is told how it went.
func (db *DB) rotate(revision int64, asked ...chan error) {
	tell := func(err error) {
		if err != nil {
			db.log.Warn("the log can't be replaced by a snapshot yet; it grows", "dir", db.cfg.Dir, "err", err)
		}
		for _, a := range asked {
			a <- err
		}
	}
	err := db.disk.rotate(revision)
	if err != nil {
		tell(err)
		return
	}
	db.mu.Lock()
	entries := db.state.index.Clone()
	db.mu.Unlock()
	db.stopped.Go(func() {
		tell(db.disk.snapshot(revision, entries))
		poke(db.work) // somebody may have asked meanwhile
	})
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
