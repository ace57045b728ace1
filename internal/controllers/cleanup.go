package controllers

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/podgc"
)

const (
	// lookAgain is how often discovery is compared with what is watched when
	// nothing has changed; it costs a comparison, see served.
	lookAgain = 30 * time.Second

	// endedPods is how many ended pods are kept; upstream's 12,500 are for
	// 5,000 nodes.
	endedPods = 1000

	deleters = 4 // objects and namespaces deleted at a time

	// collectAfter is when the garbage collector starts. It lists all there is,
	// and nothing waits for it: the first pods of a node that starts go first.
	collectAfter = time.Second
)

// together is the loop that runs several.
func together(loops ...loop) loop {
	return func(ctx context.Context) {
		var running sync.WaitGroup
		for _, l := range loops {
			running.Go(func() { l(ctx) })
		}
		running.Wait()
	}
}

func newGarbageCollector(ctx context.Context, s *set) (loop, error) {
	c, err := garbagecollector.NewGarbageCollector(ctx, s.client, s.metadata, s.mapper, garbagecollector.DefaultIgnoredResources(), s.objects, s.started)
	if err != nil {
		return nil, err
	}
	collect := together(
		func(ctx context.Context) { c.Run(ctx, deleters, lookAgain) },
		func(ctx context.Context) {
			s.served.follow(ctx, func(ctx context.Context) { c.Sync(ctx, s.served, lookAgain) })
		},
	)
	return func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(collectAfter):
			collect(ctx)
		}
	}, nil
}

func newNamespace(ctx context.Context, s *set) (loop, error) {
	// What a namespace holds is asked of the API, not of what is remembered: an
	// object of a kind that was overlooked would be left behind for ever.
	c := namespace.NewNamespaceController(ctx, s.client, s.metadata, s.client.Discovery().ServerPreferredNamespacedResources,
		s.Informers.Core().V1().Namespaces(), 5*time.Minute, v1.FinalizerKubernetes)
	return func(ctx context.Context) { c.Run(ctx, deleters) }, nil
}

func newPodGC(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	return podgc.NewPodGC(ctx, s.client, core.Pods(), core.Nodes(), endedPods).Run, nil
}
