package image

import (
	"context"
	"sync"
)

// flights makes concurrent pulls of the same thing one. A flight goes on as
// long as anybody waits for it.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	waiters int
	cancel  context.CancelCauseFunc
	tracker *tracker
	done    chan struct{}
	img     *Image
	err     error
}

// do joins the flight of key, or starts it with run in its own goroutine.
func (fs *flights) do(ctx context.Context, key string, t *tracker, watch func(Progress), run func(context.Context, *tracker) (*Image, error)) (*Image, error) {
	fs.mu.Lock()
	f := fs.m[key]
	if f == nil {
		// Values are kept, the deadline is each waiter's own.
		fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, tracker: t, done: make(chan struct{})}
		if fs.m == nil {
			fs.m = make(map[string]*flight)
		}
		fs.m[key] = f
		go func() {
			defer close(f.done)
			defer cancel(nil)
			f.img, f.err = run(fctx, t)
			fs.mu.Lock()
			defer fs.mu.Unlock()
			if fs.m[key] == f {
				delete(fs.m, key)
			}
		}()
	}
	f.waiters++
	fs.mu.Unlock()

	stop := f.tracker.watch(watch)
	defer stop()
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
	}
	fs.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && fs.m[key] == f {
		// Those who come now start afresh rather than join the dying.
		delete(fs.m, key)
	}
	fs.mu.Unlock()
	if last {
		f.cancel(context.Cause(ctx))
		<-f.done // nothing runs on behind the caller's back
		if f.err == nil {
			return f.img, nil
		}
		return nil, f.err
	}
	return nil, context.Cause(ctx)
}
