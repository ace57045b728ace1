package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/podlisten"
	"unipod.dev/unipod/internal/service"
)

// PodSide is how pods reach this machine.
type PodSide struct {
	// Link is the one that pods are behind, Gateways the machine's addresses
	// on it, at most one of each family. Empty: another runtime's or a CNI
	// configuration's network, of which nothing is known.
	Link     string
	Gateways []netip.Addr
	// Prepare makes the link before the first pod comes.
	Prepare func(context.Context) error
}

// gateway is the machine's address for pods that speak the family.
func (p PodSide) gateway(is4 bool) netip.Addr {
	for _, gw := range p.Gateways {
		if gw.Is4() == is4 {
			return gw
		}
	}
	return netip.Addr{}
}

// defaultServices are the networks of cluster IPs that pods can speak to.
func (p PodSide) defaultServices() (all []*net.IPNet) {
	for _, n := range DefaultServices() {
		if len(p.Gateways) == 0 || p.gateway(is4(n)).IsValid() {
			all = append(all, n)
		}
	}
	return all
}

func is4(n *net.IPNet) bool { return n.IP.To4() != nil }

// podEndpoint is where pods reach the API, by the family of the Service
// kubernetes: at an address the API listens on anyway, or at a listener of
// their own, which nobody else reaches.
func (c *Cluster) podEndpoint(listeners []net.Listener) (at netip.AddrPort, own net.Listener, err error) {
	want4 := is4(c.cfg.Services[0])
	gateway := c.cfg.Pods.gateway(want4)
	everywhere := netip.AddrPort{}
	for _, l := range listeners {
		a, err := netip.ParseAddrPort(l.Addr().String())
		switch {
		case err != nil:
		case a.Addr().IsUnspecified():
			if !a.Addr().Is4() || want4 {
				everywhere = a
			}
		case !a.Addr().IsLoopback() && a.Addr().Is4() == want4:
			return a, nil, nil
		}
	}
	if !gateway.IsValid() {
		c.cfg.Log.Warn("pods can't reach the API: it listens on the loopback only, and their network isn't unipod's; give it --api-address with an address of this machine that they reach")
		return netip.AddrPort{}, nil, nil
	}
	if everywhere.IsValid() {
		return netip.AddrPortFrom(gateway, everywhere.Port()), nil, nil
	}
	port := uint16(listeners[0].Addr().(*net.TCPAddr).Port)
	l, err := podlisten.Listen(c.cfg.Pods.Link, netip.AddrPortFrom(gateway, port), c.cfg.Log)
	if errors.Is(err, unix.EADDRINUSE) {
		l, err = podlisten.Listen(c.cfg.Pods.Link, netip.AddrPortFrom(gateway, 0), c.cfg.Log)
	}
	if err != nil {
		return netip.AddrPort{}, nil, fmt.Errorf("listening for pods that use the API: %w", err)
	}
	return reachable(l.Addr()), l, nil
}

// newServices makes what forwards to Services; it must be called before the
// informers run.
func (c *Cluster) newServices() (*service.Controller, error) {
	cfg := service.Config{Informers: c.api.Informers(), NodeName: c.cfg.NodeName, Link: c.cfg.Pods.Link, Clock: c.cfg.Clock, Log: c.cfg.Log}
	for _, n := range c.cfg.Services {
		ones, _ := n.Mask.Size()
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			cfg.Networks = append(cfg.Networks, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return service.New(cfg)
}

// runServices forwards to Services until ctx ends, from when the node is
// ready: what an earlier node left in the kernel serves until then.
func (c *Cluster) runServices(ctx context.Context, services *service.Controller) {
	c.close = append(c.close, c.removeServices)
	c.group.Go(func() error { return services.Run(ctx) })
	if prepare := c.cfg.Pods.Prepare; prepare != nil {
		c.group.Go(func() error {
			// The first pod will say the same, and to whom it matters.
			if err := prepare(ctx); err != nil && ctx.Err() == nil {
				c.cfg.Log.Warn("the pod network can't be made yet", "err", err)
			}
			return nil
		})
	}
}

// removeServices takes them out of the kernel where they end with the cluster:
// pods that go on running go on using Services.
func (c *Cluster) removeServices() error {
	if !c.cfg.Memory {
		running := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}
		pods, err := c.cfg.CRI.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{Filter: running})
		if err != nil || len(pods.GetItems()) > 0 {
			return err
		}
	}
	return service.Remove(c.cfg.Pods.Link)
}
