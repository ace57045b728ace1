package cluster

import (
	"fmt"
	"net"
	"net/netip"
)

// listen opens all addresses or none.
func listen(what string, addresses []string) (_ []net.Listener, err error) {
	var all []net.Listener
	for _, a := range addresses {
		l, err := net.Listen("tcp", a)
		if err != nil {
			shut(all)
			return nil, fmt.Errorf("listening for %s on %s: %w", what, a, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func shut(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// reachable is where a client on this machine reaches a listener.
func reachable(a net.Addr) netip.AddrPort {
	at, err := netip.ParseAddrPort(a.String())
	switch {
	case err != nil:
		return netip.AddrPort{}
	case !at.Addr().IsUnspecified():
		return at
	case at.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
}

// first is the first address of a network that a host may have.
func first(n *net.IPNet) netip.Addr {
	a, _ := netip.AddrFromSlice(n.IP)
	return a.Next()
}
