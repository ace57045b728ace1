package ruleset

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/service/plan"
)

// flows forgets tracked flows of datagrams. The kernel sends a flow's packets
// where its first one went for as long as the sender goes on, so one to a
// backend that is gone, or to none when there was none, has to be forgotten.
// (A TCP connection ends with its peer.)
type flows struct{ handle *netlink.Handle }

func openFlows(ns *os.File) (_ *flows, err error) {
	var h *netlink.Handle
	if ns != nil {
		h, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_NETFILTER)
	} else {
		h, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the kernel's connection tracking: %w", err)
	}
	return &flows{h}, nil
}

func (f *flows) close() { f.handle.Close() }

// forget is for ports that may have lost backends or got their first. It does
// its best: a flow that stays hurts its own sender only, and passes when that
// pauses.
func (f *flows) forget(log *slog.Logger, ports []plan.Port) {
	for family, n := range map[netlink.InetFamily]string{unix.AF_INET: "4", unix.AF_INET6: "6"} {
		stale := staleFlows{}
		for _, p := range ports {
			if p.Protocol == v1.ProtocolUDP && familyOf(p.Addr) == n {
				stale[netip.AddrPortFrom(p.Addr, p.Port)] = p.Backends
			}
		}
		if len(stale) == 0 {
			continue
		}
		if _, err := f.handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, stale); err != nil {
			log.Warn("flows to former backends of Services could not be forgotten", "err", err)
		}
	}
}

// staleFlows has the backends of UDP ports, and matches flows to these ports
// that go elsewhere.
type staleFlows map[netip.AddrPort][]netip.AddrPort

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	backends, ours := s[netip.AddrPortFrom(addrOf(flow.Forward.DstIP), flow.Forward.DstPort)]
	return ours && !slices.Contains(backends, netip.AddrPortFrom(addrOf(flow.Reverse.SrcIP), flow.Reverse.SrcPort))
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
