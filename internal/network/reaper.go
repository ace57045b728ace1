package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// reaper deletes the links of pods that were torn down, behind the reply and
// many at a time: the kernel waits for one as long as for a hundred, and
// nobody can set up a link meanwhile. One goroutine does it, from start to
// stop.
type reaper struct {
	wake    chan struct{} // something waits
	hurry   chan struct{} // somebody waits for it
	quit    chan struct{}
	stopped chan struct{}

	mu      sync.Mutex
	waiting map[string]*record
	batch   chan struct{} // closed after each batch
	err     error         // of the last batch
}

// collect is how long a batch waits for company. Most links are gone by then:
// the kernel deletes them together with the pod's namespace.
const collect = 50 * time.Millisecond

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
		t := n.cfg.Clock.NewTimer(collect)
		select {
		case <-p.hurry:
		case <-p.quit:
		case <-t.C():
		}
		t.Stop()

		p.mu.Lock()
		batch := slices.Collect(maps.Values(p.waiting))
		p.mu.Unlock()
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
		p.err = err
		close(p.batch)
		p.batch = make(chan struct{})
		p.mu.Unlock()
	}
}

// add leaves a pod to the reaper.
func (p *reaper) add(r *record) {
	p.mu.Lock()
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
