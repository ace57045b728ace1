package image

import (
	"context"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"k8s.io/utils/clock"
)

// parking keeps what a failed pull has downloaded for the next attempt, which
// a kubelet makes within minutes. It does not outlive the store's process.
type parking struct {
	mu     sync.Mutex
	closed bool
	m      map[string]parked
}

type parked struct {
	lease leases.Lease
	timer clock.Timer
}

// worthParking says whether the next attempt may get further with what this
// one has: the registry or the time was at fault, not the image.
func worthParking(err error) bool {
	switch kindOf(err) {
	case context.Canceled, context.DeadlineExceeded, errdefs.ErrUnavailable:
		return true
	}
	return transient(err)
}

// pullLease is lease for the pull that key names. It takes up what an earlier
// attempt left. The release gets the outcome of the pull.
func (s *Store) pullLease(ctx context.Context, key string) (context.Context, func(error) error, error) {
	done := context.WithoutCancel(ctx)
	l, again := s.unpark(key)
	if !again {
		var err error
		if l, err = s.newLease(ctx); err != nil {
			return nil, nil, err
		}
	}
	return leases.WithLease(ctx, l.ID), func(outcome error) error {
		switch {
		case outcome == nil && !again:
			return s.leases.Delete(done, l) // all of it is referenced now
		case outcome == nil || s.cfg.KeepPartial < 0 || !worthParking(outcome):
			return s.drop(done, l)
		}
		if err := s.dropExtracts(done, l.ID); err != nil {
			return err
		}
		if s.park(done, key, l) {
			return nil
		}
		return s.drop(done, l)
	}, nil
}

// dropExtracts removes the half unpacked layers of a lease; only downloads can
// be taken up again.
func (s *Store) dropExtracts(ctx context.Context, lease string) error {
	var keys []string
	err := s.snapshots.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if strings.HasPrefix(i.Name, extractPrefix(lease)) {
			keys = append(keys, i.Name)
		}
		return nil
	})
	if err != nil || len(keys) == 0 {
		return err
	}
	if err := s.owe(); err != nil {
		return err
	}
	for _, k := range keys {
		if err := s.snapshots.Remove(ctx, k); err != nil {
			return err
		}
	}
	return s.pay(ctx)
}

// extractPrefix begins the keys of the snapshots that a lease unpacks into.
func extractPrefix(lease string) string { return "extract-" + lease + " " }

func (s *Store) unpark(key string) (leases.Lease, bool) {
	s.parking.mu.Lock()
	defer s.parking.mu.Unlock()
	p, ok := s.parking.m[key]
	if ok {
		delete(s.parking.m, key)
		p.timer.Stop()
	}
	return p.lease, ok
}

// park keeps a lease for a while. It refuses when the store is closing or
// another attempt has parked meanwhile.
func (s *Store) park(ctx context.Context, key string, l leases.Lease) bool {
	p := &s.parking
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.m[key]; taken || p.closed {
		return false
	}
	timer := s.cfg.Clock.AfterFunc(s.cfg.KeepPartial, func() {
		if l, ok := s.expire(key, l.ID); ok {
			defer s.work.Done()
			if err := s.drop(ctx, l); err != nil {
				s.log.Warn("dropping a partial download failed; it will be tried again", "error", err)
			}
		}
	})
	if p.m == nil {
		p.m = make(map[string]parked)
	}
	p.m[key] = parked{l, timer}
	return true
}

// expire takes a lease whose time is over, if it is still there, and makes
// Close wait for what is done with it.
func (s *Store) expire(key, id string) (leases.Lease, bool) {
	s.parking.mu.Lock()
	defer s.parking.mu.Unlock()
	p, ok := s.parking.m[key]
	if !ok || p.lease.ID != id || s.parking.closed {
		return leases.Lease{}, false
	}
	delete(s.parking.m, key)
	s.work.Add(1)
	return p.lease, true
}

// clearParking gives all partial downloads up, for good.
func (s *Store) clearParking(ctx context.Context) error {
	p := &s.parking
	p.mu.Lock()
	var all []leases.Lease
	for _, e := range p.m {
		e.timer.Stop()
		all = append(all, e.lease)
	}
	p.m, p.closed = nil, true
	p.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	return s.drop(scope(ctx), all...)
}
