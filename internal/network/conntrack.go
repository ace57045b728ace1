package network

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// A flow of datagrams that the kernel tracks keeps going where its first
// packet went, for as long as the sender goes on. So when a UDP host port
// changes hands its flows have to be forgotten. (A TCP connection ends with
// its peer.)

// staleFlow matches flows to a host port that do not go to the pod that has
// the port now.
type staleFlow struct {
	port     PortMapping
	pod      netip.Addr
	networks []netip.Prefix // of pods
	host     []netip.Addr   // the host's own addresses
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f *staleFlow) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != f.port.Protocol.number() || flow.Forward.DstPort != f.port.HostPort {
		return false
	}
	to, served := addrOf(flow.Forward.DstIP), addrOf(flow.Reverse.SrcIP)
	if served == f.pod || f.port.HostIP.IsValid() && !f.port.HostIP.IsUnspecified() && f.port.HostIP != to {
		return false
	}
	return slices.Contains(f.host, to) ||
		slices.ContainsFunc(f.networks, func(p netip.Prefix) bool { return p.Contains(served) })
}

// flowOfPod matches flows that were redirected to a pod.
type flowOfPod netip.Addr

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (pod flowOfPod) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	served := addrOf(flow.Reverse.SrcIP)
	return served == netip.Addr(pod) && addrOf(flow.Forward.DstIP) != served
}

// forgetStaleFlows is for a pod that just got its host ports.
func (n *Network) forgetStaleFlows(r *record) {
	for _, ip := range r.Attachment.IPs {
		pod := ip.Addr()
		var filters []netlink.CustomConntrackFilter
		for _, p := range r.Ports {
			if p.Protocol != TCP && p.serves(pod.Is4()) {
				filters = append(filters, &staleFlow{port: p, pod: pod, networks: n.ipam.networks(), host: n.hostAddrs(pod)})
			}
		}
		n.forgetFlows(pod, filters)
	}
}

// forgetFlowsOf is for a pod that is gone.
func (n *Network) forgetFlowsOf(r *record) {
	if !slices.ContainsFunc(r.Ports, func(p PortMapping) bool { return p.Protocol != TCP }) {
		return
	}
	for _, ip := range r.Attachment.IPs {
		n.forgetFlows(ip.Addr(), []netlink.CustomConntrackFilter{flowOfPod(ip.Addr())})
	}
}

// forgetFlows does its best: a flow that stays hurts its own sender only, and
// passes when that pauses.
func (n *Network) forgetFlows(pod netip.Addr, filters []netlink.CustomConntrackFilter) {
	if len(filters) == 0 {
		return
	}
	_, err := n.handle.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family(pod)), filters...)
	if err != nil {
		n.log.Warn("flows to a former owner of a host port could not be forgotten", "error", err)
	}
}

// hostAddrs returns the host's addresses of pod's family.
func (n *Network) hostAddrs(pod netip.Addr) []netip.Addr {
	addrs, err := n.handle.AddrList(nil, int(family(pod)))
	if err != nil {
		n.log.Warn("listing the host's addresses", "error", err)
	}
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, addrOf(a.IP))
	}
	return all
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
