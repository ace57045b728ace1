package controllers

import (
	"context"
	"time"

	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
)

// When a node counts as lost, and how fast lost ones are emptied: upstream's
// defaults. The latter are of no consequence with one node.
const (
	nodeLook     = 5 * time.Second
	nodeStartup  = 60 * time.Second
	nodeGrace    = 50 * time.Second
	evictionRate = 0.1
	slowRate     = 0.01
	largeCluster = 50
	unhealthy    = 0.55
)

func newNodeLifecycle(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c, err := nodelifecycle.NewNodeLifecycleController(ctx, s.Informers.Coordination().V1().Leases(), core.Pods(), core.Nodes(),
		s.Informers.Apps().V1().DaemonSets(), s.client, nodeLook, nodeStartup, nodeGrace, evictionRate, slowRate, largeCluster, unhealthy)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newTaintEviction(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c, err := tainteviction.New(ctx, s.client, core.Pods(), core.Nodes(), names.TaintEvictionController)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}
