package controllers

import (
	"context"

	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
)

// maxEndpoints is how many addresses one EndpointSlice has, and one subset of
// Endpoints that is mirrored; upstream's default.
const maxEndpoints = 100

func newEndpoints(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c := endpoint.NewEndpointController(ctx, core.Pods(), core.Services(), core.Endpoints(), s.client, 0)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newEndpointSlice(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c := endpointslice.NewController(ctx, core.Pods(), core.Services(), core.Nodes(), s.Informers.Discovery().V1().EndpointSlices(), maxEndpoints, s.client, 0)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newEndpointSliceMirroring(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c := endpointslicemirroring.NewController(ctx, core.Endpoints(), s.Informers.Discovery().V1().EndpointSlices(), core.Services(), 10*maxEndpoints, s.client, 0)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newServiceCIDR(ctx context.Context, s *set) (loop, error) {
	networking := s.Informers.Networking().V1()
	c := servicecidrs.NewController(ctx, networking.ServiceCIDRs(), networking.IPAddresses(), s.client)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
