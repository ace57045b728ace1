package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
)

// serviceAllocators hand out Services' addresses and ports. They live in
// memory: what is taken is what the stored Services say, read at start.
type serviceAllocators struct {
	primary api.IPFamily
	ips     map[api.IPFamily]ipallocator.Interface
	ports   *portallocator.PortAllocator
}

func newServiceAllocators(cidrs []*net.IPNet, ports utilnet.PortRange) (*serviceAllocators, error) {
	if len(cidrs) == 0 || len(cidrs) > 2 {
		return nil, fmt.Errorf("service addresses: %d ranges given: one, or one of each IP family", len(cidrs))
	}
	a := &serviceAllocators{ips: map[api.IPFamily]ipallocator.Interface{}}
	for _, cidr := range cidrs {
		r, err := ipallocator.NewInMemory(cidr)
		if err != nil {
			return nil, fmt.Errorf("service addresses %s: %w", cidr, err)
		}
		if _, ok := a.ips[r.IPFamily()]; ok {
			return nil, fmt.Errorf("service addresses: two ranges of %s", r.IPFamily())
		}
		if a.primary == "" {
			a.primary = r.IPFamily()
		}
		a.ips[r.IPFamily()] = r
	}
	p, err := portallocator.NewInMemory(ports)
	if err != nil {
		return nil, fmt.Errorf("node ports %s: %w", ports.String(), err)
	}
	a.ports = p
	return a, nil
}

// reserve takes what the stored Services have. It must be done before any
// Service is created. A Service that has an address out of the range or that
// another has too keeps it, as upstream's repair does: it is reported.
func (a *serviceAllocators) reserve(ctx context.Context, services rest.Lister) ([]error, error) {
	obj, err := services.List(ctx, &metainternalversion.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the Services there are: %w", err)
	}
	list, ok := obj.(*api.ServiceList)
	if !ok {
		return nil, fmt.Errorf("reading the Services there are: got %T", obj)
	}
	var odd []error
	for i := range list.Items {
		svc := &list.Items[i]
		odd = append(odd, a.reserveOne(svc)...)
	}
	return odd, nil
}

func (a *serviceAllocators) reserveOne(svc *api.Service) (odd []error) {
	for i, s := range svc.Spec.ClusterIPs {
		ip := net.ParseIP(s)
		if ip == nil || i >= len(svc.Spec.IPFamilies) { // None: headless
			continue
		}
		r, ok := a.ips[svc.Spec.IPFamilies[i]]
		if !ok {
			odd = append(odd, fmt.Errorf("service %s/%s: address %s: this node has no range of %s", svc.Namespace, svc.Name, s, svc.Spec.IPFamilies[i]))
			continue
		}
		if err := r.Allocate(ip); err != nil {
			odd = append(odd, fmt.Errorf("service %s/%s: address %s: %w", svc.Namespace, svc.Name, s, err))
		}
	}
	seen := map[int]bool{}
	take := func(port int32) {
		if port == 0 || seen[int(port)] { // one port of several protocols is one
			return
		}
		seen[int(port)] = true
		var outside *portallocator.ErrNotInRange
		if err := a.ports.Allocate(int(port)); err != nil && !errors.As(err, &outside) {
			odd = append(odd, fmt.Errorf("service %s/%s: node port %d: %w", svc.Namespace, svc.Name, port, err))
		}
	}
	for _, p := range svc.Spec.Ports {
		take(p.NodePort)
	}
	take(svc.Spec.HealthCheckNodePort)
	return odd
}
