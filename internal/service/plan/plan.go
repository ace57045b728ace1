// Package plan decides what the addresses of a Service stand for: to which
// backends a connection to a cluster IP may go. A Service and its
// EndpointSlices go in, a table a person can read comes out.
//
// The rules are kube-proxy's, by its own code: which Services have addresses,
// what several slices say of one endpoint, ready, serving and terminating
// endpoints, traffic policies and topology hints. Nothing is kept between
// calls and nothing outside is looked at, so all of it may be called from
// anywhere, and the same arguments give the same table.
//
// Cluster IPs only: node ports, external and load balancers' addresses of a
// Service are left out.
//
// Floor: 5. It imports nothing of unipod.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// Key is what a connection to a Service is made to.
type Key struct {
	Addr     netip.Addr
	Protocol v1.Protocol
	Port     uint16
}

func (k Key) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.Addr, k.Port), strings.ToLower(string(k.Protocol)))
}

// Port is one port of a cluster IP.
type Port struct {
	Key
	// Name is the Service's and the port's, for people.
	Name string
	// Backends take connections, each as likely as the other; in order,
	// without doubles. Without any, connections are refused.
	Backends []netip.AddrPort
	// Affinity is how long a client address stays with its backend after its
	// last new connection; 0: each connection is for itself.
	Affinity time.Duration
	// Drop means that there are backends, none of which may be used from this
	// node: connections get no answer, so that clients try again.
	Drop bool
}

func (p Port) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s ->", p.Key, p.Name)
	for _, to := range p.Backends {
		fmt.Fprintf(&b, " %s", to)
	}
	switch {
	case p.Drop:
		b.WriteString(" drop")
	case len(p.Backends) == 0:
		b.WriteString(" reject")
	}
	if p.Affinity > 0 {
		fmt.Fprintf(&b, " (a client stays for %s)", p.Affinity)
	}
	return b.String()
}

// Node is where the connections begin.
type Node struct {
	Name   string
	Labels map[string]string
}

// Of is the table of one Service, ordered by its keys. The slices are those of
// the Service; ones of another family of addresses do no harm. A Service that
// has no cluster IP, or that says another proxy serves it, has none.
func Of(service *v1.Service, endpoints []*discovery.EndpointSlice, node Node) []Port {
	if _, others := service.Labels[apis.LabelServiceProxyName]; others {
		return nil
	}
	var all []Port
	for _, family := range []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol} {
		changes := proxy.NewServiceChangeTracker(family, nil, nil)
		changes.Update(nil, service)
		ports := proxy.ServicePortMap{}
		ports.Update(changes)
		if len(ports) == 0 {
			continue
		}
		backends := endpointsOf(family, endpoints, node.Name)
		for name, info := range ports {
			addr, ok := netip.AddrFromSlice(info.ClusterIP())
			if !ok {
				continue
			}
			p := Port{Key: Key{addr.Unmap(), info.Protocol(), uint16(info.Port())}, Name: name.String()}
			if info.SessionAffinityType() == v1.ServiceAffinityClientIP {
				p.Affinity = time.Duration(info.StickyMaxAgeSeconds()) * time.Second
			}
			usable, local, _, some := proxy.CategorizeEndpoints(backends[name], info, node.Name, node.Labels)
			if info.InternalPolicyLocal() {
				usable = local
			}
			p.Backends = addresses(usable)
			p.Drop = len(p.Backends) == 0 && some
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Port) int { return compare(a.Key, b.Key) })
	return all
}

func endpointsOf(family v1.IPFamily, all []*discovery.EndpointSlice, node string) proxy.EndpointsMap {
	changes := proxy.NewEndpointsChangeTracker(family, node, nil, nil)
	for _, s := range all {
		// A headless Service's are there for DNS.
		if _, headless := s.Labels[v1.IsHeadlessService]; !headless {
			changes.EndpointSliceUpdate(s, false)
		}
	}
	m := proxy.EndpointsMap{}
	m.Update(changes)
	return m
}

// addresses leaves out what nobody may be sent to. The API refuses these in
// EndpointSlices; were one to slip through, a connection from a pod would end
// at a service of the host's that is for the host alone.
func addresses(all []proxy.Endpoint) (to []netip.AddrPort) {
	for _, e := range all {
		a, err := netip.ParseAddr(e.IP())
		port := e.Port()
		if a = a.Unmap(); err != nil || a.Zone() != "" || !a.IsGlobalUnicast() || port < 1 || port > 65535 {
			continue
		}
		to = append(to, netip.AddrPortFrom(a, uint16(port)))
	}
	slices.SortFunc(to, netip.AddrPort.Compare)
	return slices.Compact(to)
}

func compare(a, b Key) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}
