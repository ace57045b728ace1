package network

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// podside is what can be done in a pod's namespace whoever made its network.
type podside struct{}

// Loopback brings lo up in a namespace that Setup is not called for.
func (podside) Loopback(ns *os.File) error {
	c, err := dialIn(ns)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.do(loopbackUp())
}

// InterfaceStats are the counters of one interface since it was made.
type InterfaceStats struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Stats reads the counters of a namespace's interfaces, lo left out.
func (podside) Stats(ns *os.File) ([]InterfaceStats, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink in %s: %w", ns.Name(), err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links in %s: %w", ns.Name(), err)
	}
	var all []InterfaceStats
	for _, l := range links {
		a := l.Attrs()
		if a.RawFlags&unix.IFF_LOOPBACK != 0 || a.Statistics == nil {
			continue
		}
		s := a.Statistics
		all = append(all, InterfaceStats{
			Name:    a.Name,
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		})
	}
	return all, nil
}
