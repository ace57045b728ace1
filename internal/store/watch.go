package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	utilflowcontrol "k8s.io/apiserver/pkg/util/flowcontrol"

	"unipod.dev/unipod/internal/store/kv"
)

const (
	// resultBuffer is how many events wait for a client; the others stay in
	// the store's past.
	resultBuffer = 16
	// takeAtOnce is how many events are taken from there.
	takeAtOnce = 64

	// bookmarkEvery and bookmarkBefore say when a watch that asked for
	// bookmarks gets one: every now and then, and before its time is over.
	bookmarkEvery  = time.Minute
	bookmarkBefore = 2 * time.Second
	// progressEvery is the same for those inside the server who ask for
	// progress.
	progressEvery = 5 * time.Second
)

// watcher is one watch.
type watcher struct {
	r        *resource
	opts     storage.ListOptions
	pred     storage.SelectionPredicate
	target   string
	after    int64 // the revision after which events are asked for
	ctx      context.Context
	cancel   context.CancelFunc
	results  chan watch.Event
	progress chan struct{} // progress was asked for
}

func (r *resource) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	target, err := r.key(key, opts.Recursive)
	if err != nil {
		return nil, err
	}
	rev, err := r.versioner.ParseResourceVersion(opts.ResourceVersion)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", err))
	}
	if opts.ProgressNotify && r.newFunc == nil {
		return nil, apierrors.NewInternalError(errors.New("progressNotify for watch is unsupported because no newFunc was provided"))
	}
	w := &watcher{
		r:        r,
		opts:     opts,
		pred:     opts.Predicate,
		target:   target,
		after:    int64(rev),
		results:  make(chan watch.Event, resultBuffer),
		progress: make(chan struct{}, 1),
	}
	// "From now on" is from when it was asked, not from when we come to it.
	if rev == 0 && !w.wantsInitial() {
		w.after = r.db.Revision()
	}
	w.ctx, w.cancel = context.WithCancel(ctx)
	r.watches.Add(1)
	go w.run()
	return w, nil
}

func (w *watcher) Stop()                          { w.cancel() }
func (w *watcher) ResultChan() <-chan watch.Event { return w.results }

// wantsInitial: the watch begins with what is there. Without a word about it a
// watch from nowhere does, for old clients.
func (w *watcher) wantsInitial() bool {
	if w.opts.SendInitialEvents == nil {
		return w.after == 0
	}
	return *w.opts.SendInitialEvents
}

// wantsInitialEnd: a bookmark says that what was there has been sent.
func (w *watcher) wantsInitialEnd() bool {
	return w.opts.SendInitialEvents != nil && *w.opts.SendInitialEvents && w.pred.AllowWatchBookmarks
}

func (w *watcher) run() {
	defer close(w.results)
	defer w.cancel()
	defer w.r.watches.Add(-1)
	err := w.begin()
	// Whoever counts what a watch costs at its begin may go on.
	utilflowcontrol.WatchInitialized(w.ctx)
	if err == nil {
		err = w.follow()
	}
	if err == nil || w.ctx.Err() != nil || errors.Is(err, kv.ErrClosed) {
		return
	}
	status := watchError(err).Status()
	_ = w.send(watch.Event{Type: watch.Error, Object: &status})
}

// begin sends what is there, if it is asked for.
func (w *watcher) begin() error {
	if !w.wantsInitial() {
		return nil
	}
	page, err := w.r.page(w.target, "", 0, 0, w.opts.Recursive)
	if err != nil {
		return err
	}
	if w.after > page.Revision {
		retry := 1 + rand.IntN(3)
		return storage.NewTooLargeResourceVersionError(uint64(w.after), uint64(page.Revision), retry)
	}
	w.after = page.Revision
	for i, e := range page.Entries {
		// A long list takes its time; what was sent may go.
		page.Entries[i] = nil
		if err := w.deliver(&kv.Event{Key: e.Key, Revision: e.Revision, New: e}); err != nil {
			return err
		}
	}
	if w.wantsInitialEnd() {
		return w.bookmark(w.after, true)
	}
	return nil
}

// follow sends what happens, until the watch is ended.
func (w *watcher) follow() error {
	from, err := w.r.db.Watch(w.target, w.opts.Recursive, w.after)
	if err != nil {
		return err
	}
	defer from.Close()
	if w.opts.ProgressNotify {
		w.r.wantProgress(w)
		defer w.r.wantNoProgress(w)
	}
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	w.schedule(timer)
	for {
		mark := false
		select {
		case <-w.ctx.Done():
			return nil
		case <-from.Ready():
		case <-w.progress:
			mark = true
		case <-timer.C:
			mark = true
			w.schedule(timer)
		}
		events, upTo, err := from.Take(takeAtOnce)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if err := w.deliver(ev); err != nil {
				return err
			}
		}
		if mark {
			if err := w.bookmark(upTo, false); err != nil {
				return err
			}
		}
	}
}

// schedule sets the time of the next bookmark.
func (w *watcher) schedule(timer *time.Timer) {
	switch {
	case w.r.newFunc == nil:
	case w.opts.ProgressNotify:
		timer.Reset(progressEvery)
	case w.pred.AllowWatchBookmarks:
		next := bookmarkEvery
		if deadline, ok := w.ctx.Deadline(); ok {
			if left := time.Until(deadline) - bookmarkBefore; left < next && left > 0 {
				next = left
			}
		}
		timer.Reset(next)
	}
}

// bookmark says that everything up to a revision was sent.
func (w *watcher) bookmark(rev int64, initialEnd bool) error {
	if w.r.newFunc == nil {
		return nil
	}
	obj := w.r.newFunc()
	if err := w.r.versioner.UpdateObject(obj, uint64(rev)); err != nil {
		return fmt.Errorf("a bookmark of %s: %w", w.r.gr, err)
	}
	if initialEnd {
		if err := storage.AnnotateInitialEventsEndBookmark(obj); err != nil {
			return fmt.Errorf("a bookmark of %s: %w", w.r.gr, err)
		}
	}
	return w.send(watch.Event{Type: watch.Bookmark, Object: obj})
}

// send waits for the client, who may be slow: what it doesn't take is not
// held here but in the store's past.
func (w *watcher) send(ev watch.Event) error {
	select {
	case w.results <- ev:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// deliver sends an event as the watch's selector sees it: an object that comes
// to be selected is added, one that no longer is was deleted.
func (w *watcher) deliver(ev *kv.Event) error {
	all := w.pred.Empty()
	var now, was, raw runtime.Object
	var err error
	isIn, wasIn := false, ev.Old != nil
	if ev.New != nil {
		if now, raw, err = w.object(ev, false); err != nil {
			return err
		}
		isIn = all || w.selects(raw)
	}
	// What it was matters when it is gone, or may have been selected.
	if ev.Old != nil && (ev.New == nil || !all) {
		if was, raw, err = w.object(ev, true); err != nil {
			if ev.New == nil {
				err = &deletedCorrupt{err}
			}
			return err
		}
		wasIn = all || w.selects(raw)
	}
	switch {
	case isIn && wasIn:
		return w.send(watch.Event{Type: watch.Modified, Object: now})
	case isIn:
		return w.send(watch.Event{Type: watch.Added, Object: now})
	case wasIn:
		return w.send(watch.Event{Type: watch.Deleted, Object: was})
	}
	return nil
}

// object decodes an event's object, or the one before. It is sent as obj and
// looked at as raw.
func (w *watcher) object(ev *kv.Event, old bool) (obj, raw runtime.Object, err error) {
	e := ev.New
	if old {
		e = ev.Old
	}
	// It has the revision of the event, also when it is what was before.
	decode := func() (runtime.Object, error) {
		data, _, err := w.r.decrypt(context.WithoutCancel(w.ctx), e)
		if err != nil {
			return nil, err
		}
		return w.r.decode(data, nil, ev.Revision)
	}
	if w.r.watches.Load() < shareFrom {
		obj, err = decode()
		return obj, obj, err
	}
	s, err := w.r.recently.get(sharedKey{ev.Revision, old}, decode)
	if err != nil {
		return nil, nil, err
	}
	return s, s.obj, nil
}

func (w *watcher) selects(obj runtime.Object) bool {
	matched, err := w.pred.Matches(obj)
	return err == nil && matched
}

func (r *resource) wantProgress(w *watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress[w] = struct{}{}
}

func (r *resource) wantNoProgress(w *watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.progress, w)
}

func (r *resource) RequestWatchProgress(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.progress {
		select {
		case w.progress <- struct{}{}:
		default:
		}
	}
	return nil
}
