package image

import (
	"context"
	"sync"
)

// keyedLock is a set of mutexes that exist while they are held or wanted.
type keyedLock struct {
	mu    sync.Mutex
	locks map[string]*refLock
}

type refLock struct {
	users int
	held  chan struct{} // buffered: full while held
}

// lock waits for the key and returns its unlock.
func (k *keyedLock) lock(ctx context.Context, key string) (func(), error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = make(map[string]*refLock)
	}
	l := k.locks[key]
	if l == nil {
		l = &refLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
