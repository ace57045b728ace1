// Package service makes Services real: it watches them and their
// EndpointSlices, has [plan] say where the connections to each go, and keeps
// the kernel in step by [ruleset].
//
// # Promises
//
// A change is in the kernel as soon as it is seen; changes seen while the
// kernel is busy go there together. Nothing is changed before all objects have
// been read, so a restart takes nothing away that should stay. What the kernel
// refuses is tried again, and logged once for as long as it goes on.
//
// Only cluster IPs are served so far: node ports, external addresses, names
// and Ingress are not.
//
// Floor: 7. The API is a client to it, by informers that others share.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	utilproxy "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/service/plan"
	"unipod.dev/unipod/internal/service/ruleset"
)

const (
	// checkEvery is how long a table that somebody took away is missing at
	// most, when no Service changes.
	checkEvery = time.Minute
	// retryFirst and retryMost are how long what the kernel refused waits.
	retryFirst = 100 * time.Millisecond
	retryMost  = 30 * time.Second
)

// TableName is that of the nftables table of a node whose pods are on a link
// of that name; "" is a link nobody knows here. Nodes that share a network
// namespace have links of their own, and so tables.
func TableName(link string) string {
	const name = "unipod-services"
	if link == "" || link == "unipod0" {
		return name
	}
	return name + "-" + link
}

// Remove takes a table away that an earlier process left.
func Remove(link string) error {
	t, err := ruleset.Open(ruleset.Config{Table: TableName(link)})
	if err != nil {
		return err
	}
	return errors.Join(t.Remove(), t.Close())
}

// Config is what a Controller works with. All but Link are required.
type Config struct {
	Informers informers.SharedInformerFactory
	NodeName  string
	// Link is the one that pods are behind, "" when it isn't known.
	Link string
	// Networks are those of Services' addresses.
	Networks []netip.Prefix
	Clock    clock.Clock
	Log      *slog.Logger
}

// Controller keeps the kernel in step. Make one with [New].
type Controller struct {
	cfg      Config
	slices   utilproxy.EndpointSliceGetter
	informed []cache.InformerSynced

	mu      sync.Mutex
	changed map[cache.ObjectName]bool
	all     bool          // each is to be looked at again
	wake    chan struct{} // of one
}

// New listens to the informers. It must be called before they run or while
// nobody else adds indexes to them.
func New(cfg Config) (*Controller, error) {
	c := &Controller{cfg: cfg, changed: map[cache.ObjectName]bool{}, wake: make(chan struct{}, 1)}
	var err error
	if c.slices, err = utilproxy.NewEndpointSliceIndexerGetter(cfg.Informers.Discovery().V1().EndpointSlices()); err != nil {
		return nil, fmt.Errorf("the informer of EndpointSlices: %w", err)
	}
	for what, add := range map[cache.SharedIndexInformer]func(old, now any){
		cfg.Informers.Core().V1().Services().Informer():            c.service,
		cfg.Informers.Discovery().V1().EndpointSlices().Informer(): c.endpoints,
		cfg.Informers.Core().V1().Nodes().Informer():               c.node,
	} {
		registered, err := what.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(now any) { add(nil, now) },
			UpdateFunc: func(old, now any) { add(old, now) },
			DeleteFunc: func(old any) {
				if last, ok := old.(cache.DeletedFinalStateUnknown); ok {
					old = last.Obj
				}
				add(old, nil)
			},
		})
		if err != nil {
			return nil, fmt.Errorf("watching Services: %w", err)
		}
		c.informed = append(c.informed, registered.HasSynced)
	}
	return c, nil
}

func (c *Controller) service(old, now any) {
	for _, obj := range []any{old, now} {
		if s, ok := obj.(*v1.Service); ok {
			c.mark(cache.ObjectName{Namespace: s.Namespace, Name: s.Name})
		}
	}
}

func (c *Controller) endpoints(old, now any) {
	for _, obj := range []any{old, now} {
		if s, ok := obj.(*discovery.EndpointSlice); ok {
			c.mark(cache.ObjectName{Namespace: s.Namespace, Name: s.Labels[discovery.LabelServiceName]})
		}
	}
}

// node looks at labels only: heartbeats say nothing here.
func (c *Controller) node(old, now any) {
	was, _ := old.(*v1.Node)
	is, _ := now.(*v1.Node)
	if is == nil || is.Name != c.cfg.NodeName || was != nil && maps.Equal(was.Labels, is.Labels) {
		return
	}
	c.mu.Lock()
	c.all = true
	c.mu.Unlock()
	c.poke()
}

func (c *Controller) mark(name cache.ObjectName) {
	c.mu.Lock()
	c.changed[name] = true
	c.mu.Unlock()
	c.poke()
}

func (c *Controller) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take returns what has changed since it was last called.
func (c *Controller) take() (changed map[cache.ObjectName]bool, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, all = c.changed, c.all
	c.changed, c.all = map[cache.ObjectName]bool{}, false
	return changed, all
}

// Run keeps the kernel in step until ctx ends. What is there stays there then.
func (c *Controller) Run(ctx context.Context) (err error) {
	table, err := ruleset.Open(ruleset.Config{Table: TableName(c.cfg.Link), From: c.cfg.Link, Networks: c.cfg.Networks, Log: c.cfg.Log})
	if err != nil {
		return fmt.Errorf("Services: %w", err)
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	if !cache.WaitForCacheSync(ctx.Done(), c.informed...) {
		return nil
	}
	retry := retryFirst
	failing := false
	wait := c.cfg.Clock.NewTimer(checkEvery)
	defer wait.Stop()
	for first, check := true, false; ; first = false {
		if err := c.sync(table, first || failing, check); err == nil {
			if failing {
				c.cfg.Log.Info("Services are in the kernel again")
			}
			retry, failing = retryFirst, false
			wait.Reset(checkEvery)
		} else {
			if !failing {
				c.cfg.Log.Error("Services aren't in the kernel; trying again", "err", err)
			}
			failing = true
			wait.Reset(retry)
			retry = min(2*retry, retryMost)
		}
		check = false
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C():
			check = true
		case <-c.wake:
		}
	}
}

// sync brings what has changed into the kernel: all of it when it isn't known
// what is there.
func (c *Controller) sync(table *ruleset.Table, fresh, check bool) error {
	changed, all := c.take()
	node := c.here()
	services := c.cfg.Informers.Core().V1().Services().Lister()
	tables := map[string][]plan.Port{}
	put := func(name cache.ObjectName) error {
		tables[name.String()] = nil
		s, err := services.Services(name.Namespace).Get(name.Name)
		if err != nil {
			return nil // it is gone
		}
		endpoints, err := c.slices.GetEndpointSlices(name.Namespace, name.Name)
		if err != nil {
			return fmt.Errorf("endpoints of Service %s: %w", name, err)
		}
		tables[name.String()] = plan.Of(s, endpoints, node)
		return nil
	}
	if fresh || all {
		everyone, err := c.everyone()
		if err != nil {
			return err
		}
		changed = everyone
	}
	for name := range changed {
		if err := put(name); err != nil {
			return err
		}
	}
	begun := c.cfg.Clock.Now()
	var err error
	switch {
	case fresh || all:
		err = table.Replace(tables)
	case len(tables) > 0:
		err = table.Sync(tables)
	case check:
		return table.Check()
	default:
		return nil
	}
	c.cfg.Log.Debug("Services brought into the kernel", "changed", len(tables), "took", c.cfg.Clock.Since(begun))
	return err
}

func (c *Controller) everyone() (map[cache.ObjectName]bool, error) {
	all := map[cache.ObjectName]bool{}
	for _, key := range c.cfg.Informers.Core().V1().Services().Informer().GetStore().ListKeys() {
		name, err := cache.ParseObjectName(key)
		if err != nil {
			return nil, err
		}
		all[name] = true
	}
	return all, nil
}

// here is the node as it is known.
func (c *Controller) here() plan.Node {
	node := plan.Node{Name: c.cfg.NodeName}
	if n, err := c.cfg.Informers.Core().V1().Nodes().Lister().Get(c.cfg.NodeName); err == nil {
		node.Labels = n.Labels
	}
	return node
}
