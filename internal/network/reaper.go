package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// reaper lets the namespaces of pods that were torn down go and deletes what
// links the kernel leaves, behind the reply and many at a time: the kernel
// waits for one as long as for a hundred, and nobody can set up a link
// meanwhile. So it also waits for a moment when nobody does. One goroutine does
// it, from start to stop.
type reaper struct {
	wake    chan struct{} // something waits
	hurry   chan struct{} // somebody waits for it
	quit    chan struct{}
	stopped chan struct{}

	mu      sync.Mutex
	waiting map[string]*record
	since   time.Time     // when the first of them came
	busy    time.Time     // when a pod was last set up
	batch   chan struct{} // closed after each batch
	err     error         // of the last batch
}

const (
	// lull is how long nobody must have set up a pod for the reaper to begin;
	// it begins anyway when the first waits for longest, or plenty wait: a dead
	// namespace holds some 100 KiB of the kernel's memory.
	lull    = 100 * time.Millisecond
	longest = 2 * time.Second
	plenty  = 128
	// collect is how long the kernel has to delete links together with their
	// namespaces, before those it left are deleted by name.
	collect = 50 * time.Millisecond
)

func (p *reaper) start(n *Network) {
	p.wake, p.hurry = make(chan struct{}, 1), make(chan struct{}, 1)
	p.quit, p.stopped = make(chan struct{}), make(chan struct{})
	p.waiting, p.batch = make(map[string]*record), make(chan struct{})
	go p.run(n)
}

func (p *reaper) run(n *Network) {
	defer close(p.stopped)
	for {
		select {
		case <-p.wake:
		case <-p.quit:
			return
		}
		hurried := false
		for !hurried {
			wait := p.due(n.cfg.Clock.Now())
			if wait <= 0 {
				break
			}
			hurried = p.sleep(n.cfg.Clock, wait, p.wake)
		}
		batch := p.taken()
		letGo(batch)
		if !hurried {
			p.sleep(n.cfg.Clock, collect, nil)
		}
		err := n.reap(batch)
		if err != nil {
			n.log.Error("links of pods could not be deleted, trying again with the next", "error", err)
		}
		p.mu.Lock()
		if err == nil {
			for _, r := range batch {
				delete(p.waiting, r.ID)
			}
		}
		p.since = n.cfg.Clock.Now() // of those that came meanwhile
		p.err = err
		close(p.batch)
		p.batch = make(chan struct{})
		p.mu.Unlock()
	}
}

// due is how long the next batch is to be put off.
func (p *reaper) due(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) >= plenty {
		return 0
	}
	at := p.busy.Add(lull)
	if last := p.since.Add(longest); at.After(last) {
		at = last
	}
	return at.Sub(now)
}

// sleep returns when the time is over or early comes, and whether it was cut
// short for somebody who waits.
func (p *reaper) sleep(c clock.Clock, d time.Duration, early <-chan struct{}) (hurried bool) {
	t := c.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.hurry:
		return true
	case <-p.quit:
		return true
	case <-early:
	case <-t.C():
	}
	return false
}

func (p *reaper) taken() []*record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.waiting))
}

// working says that a pod is being set up.
func (p *reaper) working(now time.Time) {
	p.mu.Lock()
	p.busy = now
	p.mu.Unlock()
}

// add leaves a pod to the reaper.
func (p *reaper) add(r *record, now time.Time) {
	p.mu.Lock()
	if len(p.waiting) == 0 {
		p.since = now
	}
	p.waiting[r.ID] = r
	p.mu.Unlock()
	signal(p.wake)
}

// gone returns when nothing, or nothing of the pod id, waits any more.
func (p *reaper) gone(ctx context.Context, id string) error {
	// The batch that is being done may have been taken before.
	for range 2 {
		p.mu.Lock()
		_, there := p.waiting[id]
		if id == "" {
			there = len(p.waiting) > 0
		}
		batch := p.batch
		p.mu.Unlock()
		if !there {
			return nil
		}
		signal(p.hurry)
		signal(p.wake)
		select {
		case <-batch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("deleting links: %w", p.err)
	}
	return nil
}

// stop does what still waits and ends the goroutine.
func (p *reaper) stop() {
	if p.quit == nil {
		return
	}
	// An error was logged; the next start's Reconcile tries again.
	_ = p.gone(context.Background(), "")
	close(p.quit)
	<-p.stopped
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// letGo ends the namespaces of a batch, whose processes are gone.
func letGo(batch []*record) {
	for _, r := range batch {
		r.letGo()
	}
}

// reap deletes the links of a batch, then frees the addresses, then forgets.
func (n *Network) reap(batch []*record) error {
	names := make([]string, len(batch))
	for i, r := range batch {
		names[i] = r.Attachment.HostVeth
	}
	if err := deleteVeths(n.host, names); err != nil {
		return err
	}
	n.at("unlinked")
	var errs []error
	for _, r := range batch {
		n.forgetFlowsOf(r)
		if err := n.leases.remove(r.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		n.ipam.free(r.Attachment.IPs)
		n.mu.Lock()
		delete(n.pods, r.ID)
		n.mu.Unlock()
	}
	return errors.Join(errs...)
}
