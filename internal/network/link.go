package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	podLink = "eth0"

	// vethPrefix and 11 hexadecimal digits of the pod ID's hash name the
	// node's end of a pod's veth pair: 15 bytes, all that a name may have.
	vethPrefix = "unip"

	// doomed is the link group (see ip-link(8)) of veths about to be
	// deleted. The kernel deletes a group with one wait for all of it.
	doomed = 0x756e6970

	skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
)

var (
	errNoBridge = errors.New("the bridge is gone")
	// errBridgeFull is the kernel's limit, BR_MAX_PORTS.
	errBridgeFull = fmt.Errorf("the bridge has 1023 ports, as many as a bridge can have: %w", errdefs.ErrResourceExhausted)
)

// vethName returns the name of the node's end of a pod's veth pair.
func vethName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return vethPrefix + hex.EncodeToString(sum[:6])[:11]
}

// isVethName tells our links from others.
func isVethName(name string) bool {
	if len(name) != len(vethPrefix)+11 || name[:len(vethPrefix)] != vethPrefix {
		return false
	}
	for _, c := range name[len(vethPrefix):] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// macOf derives a link's hardware address from its IP, so that an address
// given out again does not meet stale neighbour entries. 0a:58 is a locally
// administered prefix known from other pod networks.
func macOf(ip netip.Addr) net.HardwareAddr {
	b := ip.As16() // an IPv4 address is in the last four bytes
	return net.HardwareAddr{0x0a, 0x58, b[12], b[13], b[14], b[15]}
}

// makeVeth creates the pair in one message, the inner end at once in the
// pod's namespace, brings the outer end up on the bridge and returns its
// index.
func makeVeth(c *conn, bridge int, podNS *os.File, id string, a *Attachment) (int, error) {
	there := newRequest("looking up the bridge", unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(bridge)
	there.AddData(msg)
	there.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	if err := c.do(there); errors.Is(err, unix.ENODEV) {
		return 0, errNoBridge
	} else if err != nil {
		return 0, err
	}

	create := newRequest(fmt.Sprintf("creating veth pair %s", a.HostVeth),
		unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	create.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for kind, value := range map[int]int{
		unix.IFLA_MTU: a.MTU,
		// One queue per CPU, the default, makes creation twice as long here
		// and far longer on larger machines; veth needs queues for XDP only.
		unix.IFLA_NUM_TX_QUEUES: 1,
		unix.IFLA_NUM_RX_QUEUES: 1,
	} {
		create.AddData(nl.NewRtAttr(kind, nl.Uint32Attr(uint32(value))))
		peer.AddRtAttr(kind, nl.Uint32Attr(uint32(value)))
	}
	create.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.HostVeth)))
	create.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(podLink))
	peer.AddRtAttr(unix.IFLA_ADDRESS, a.mac())
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(podNS.Fd())))
	create.AddData(info)

	adjust := newRequest("adjusting bridge port "+a.HostVeth, unix.RTM_NEWLINK, 0)
	adjust.AddData(linkUp(0))
	adjust.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.HostVeth)))
	adjust.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, nl.NonZeroTerminated("pod "+id)))
	port := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	port.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	// A pod that uses its own host port comes back to itself. With
	// br_netfilter the bridge sees that as sending out where it came in.
	port.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(unix.IFLA_BRPORT_MODE, nl.Uint8Attr(1))
	adjust.AddData(port)

	index := 0
	err := c.do(create, indexOf(a.HostVeth, &index), adjust)
	if errors.Is(err, unix.EXFULL) {
		err = errBridgeFull
	}
	return index, err
}

// indexOf asks for a link's index by its name.
func indexOf(name string, index *int) request {
	r := newRequest("looking up link "+name, unix.RTM_GETLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	// Counters are half of the answer, and not wanted.
	r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	r.reply = func(b []byte) {
		if len(b) >= unix.SizeofIfInfomsg {
			*index = int(nl.DeserializeIfInfomsg(b).Index)
		}
	}
	return r
}

// deleteVeths deletes links by name, all with one wait of the kernel's.
// Those that are gone already are no error.
func deleteVeths(c *conn, names []string) error {
	if len(names) == 0 {
		return nil
	}
	requests := make([]request, 0, len(names)+1)
	for _, name := range names {
		r := newRequest("preparing to delete link "+name, unix.RTM_SETLINK, 0)
		r.tolerate = unix.ENODEV
		r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
		r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomed)))
		requests = append(requests, r)
	}
	del := newRequest("deleting links", unix.RTM_DELLINK, 0)
	del.tolerate = unix.ENODEV
	del.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	del.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomed)))
	return c.do(append(requests, del)...)
}

// openPodNS opens a netlink socket in a pod's namespace and prepares it for
// the link to come.
func openPodNS(ns *os.File) (c *conn, err error) {
	err = inNetns(ns, func() error {
		// Another pod must not be able to become this one's router by a
		// forged advertisement (CVE-2020-10749); links to come inherit.
		err := writeSysctl("net/ipv6/conf/default/accept_ra", "0")
		if err == nil {
			// Addresses are unique by construction: no waiting.
			err = writeSysctl("net/ipv6/conf/default/accept_dad", "0")
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("preparing the pod's network namespace: %w", err)
		}
		c, err = dial()
		return err
	})
	return c, err
}

// loopbackUp is the request that brings lo up, with its addresses.
func loopbackUp() request {
	const lo = 1 // in every namespace
	r := newRequest("bringing lo up", unix.RTM_SETLINK, 0)
	r.AddData(linkUp(lo))
	return r
}

func linkUp(index int) *nl.IfInfomsg {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	return msg
}

// configurePod brings lo and eth0 up, gives eth0 its addresses and default
// routes and returns eth0's index.
func configurePod(c *conn, a *Attachment) (int, error) {
	index := 0
	if err := c.do(indexOf(podLink, &index)); err != nil {
		return 0, err
	}
	up := newRequest("bringing "+podLink+" up", unix.RTM_SETLINK, 0)
	up.AddData(linkUp(index))
	requests := []request{up}
	// IPv6 first: what the kernel leaves to a worker begins earlier.
	for _, ip := range slices.Backward(a.IPs) {
		requests = append(requests, addAddress(index, ip))
	}
	requests = append(requests, loopbackUp())
	for _, gw := range a.Gateways {
		r := newRequest(fmt.Sprintf("adding default route via %s", gw),
			unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		msg := nl.NewRtMsg()
		msg.Family = family(gw)
		r.AddData(msg)
		r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gw.AsSlice()))
		r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
		requests = append(requests, r)
	}
	return index, c.do(requests...)
}

func addAddress(index int, ip netip.Prefix) request {
	r := newRequest(fmt.Sprintf("adding address %s", ip), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	msg := nl.NewIfAddrmsg(int(family(ip.Addr())))
	msg.Prefixlen = uint8(ip.Bits())
	msg.Index = uint32(index)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip.Addr().AsSlice()))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip.Addr().AsSlice()))
	if ip.Addr().Is4() {
		r.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(ip).AsSlice()))
	} else {
		r.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
	}
	return r
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// broadcast returns the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// makeBridge makes the bridge or adopts the one there is, and returns its
// index.
func makeBridge(h *netlink.Handle, name string, mtu int, gateways []netip.Prefix) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = mtu
	// A bridge without a hardware address of its own takes that of a port
	// and changes it as ports come and go, behind the pods' backs.
	attrs.HardwareAddr = macOf(gateways[0].Addr())
	err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("creating bridge %s: %w", name, err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("looking up bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return 0, fmt.Errorf("link %s exists and is of type %s, not a bridge: choose another bridge name", name, link.Type())
	}
	return link.Attrs().Index, nil
}
