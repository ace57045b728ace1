// Package scheduler binds pods to the node: upstream's scheduler, unchanged,
// with its default plugins. With one node there is little to choose, but much
// to refuse, and a pod that stays Pending is told why in the scheduler's own
// words: selectors, affinity, taints, resources, host ports, volumes, spread;
// preemption by priority included.
//
// It owns the scheduling queue and a cache of the node and its pods, which
// follow the API; it stores nothing, so a kill at any instant leaves a pod bound
// or still to be bound. Several pods are bound at a time; two of them never get
// the same room.
//
// Floor: 6, over klogs, beside controllers. It speaks to the API through the
// rest.Config it is given, whoever serves it.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	upstream "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"unipod.dev/unipod/internal/klogs"
)

// Agent is who the scheduler is to the API: in its audit log, and as the manager
// of the fields it writes.
const Agent = "kube-scheduler"

// A Config says whose scheduler it is.
type Config struct {
	// Client reaches the API as one who may read everything and bind pods.
	Client *rest.Config
	// Informers are shared with whoever else watches the API in this process.
	// Run starts those it needs.
	Informers informers.SharedInformerFactory
	// Making is held while the scheduler is made; see package controllers.
	Making sync.Locker
	Log    *slog.Logger
}

// Run schedules until ctx is done.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Client == nil || cfg.Informers == nil || cfg.Making == nil || cfg.Log == nil {
		return errors.New("the scheduler needs a client, informers, their lock and a logger")
	}
	// Nothing holds the client back: it calls a function of this process.
	c := rest.CopyConfig(cfg.Client)
	c.QPS, c.Burst, c.RateLimiter = -1, 0, nil
	c.UserAgent = Agent
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return fmt.Errorf("the scheduler's client: %w", err)
	}
	return run(klogs.Context(ctx, cfg.Log, "controller", "scheduler"), client, cfg.Informers, cfg.Making)
}

func run(ctx context.Context, client kubernetes.Interface, shared informers.SharedInformerFactory, making sync.Locker) error {
	said := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	defer said.Shutdown()

	// One node needs one worker. A pod that failed is tried again when
	// something happened that may help it, at the earliest after the second of
	// back-off that is upstream's default and keeps a failing bind from spinning.
	making.Lock()
	s, err := upstream.New(ctx, client, living{shared}, nil, profile.NewRecorderFactory(said), upstream.WithParallelism(1))
	making.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the scheduler: %w", err)
	}
	if err := said.StartRecordingToSinkWithContext(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("the scheduler's events: %w", err)
	}
	shared.StartWithContext(ctx)
	if synced(ctx, s) {
		s.Run(ctx)
	}
	return nil
}

// synced waits until the scheduler has seen all there is. Upstream looks ten
// times a second, which is longer than a pod takes to start.
func synced(ctx context.Context, s *upstream.Scheduler) bool {
	for ctx.Err() == nil {
		soon, cancel := context.WithTimeout(ctx, 2*time.Millisecond)
		err := s.WaitForHandlersSync(soon)
		cancel()
		if err == nil {
			return true
		}
	}
	return false
}
