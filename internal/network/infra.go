package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// infra is what all pods share: settings of the host, bridge and table.
type infra struct {
	mu     sync.Mutex
	made   bool
	bridge int // index
	mtu    int
	table  *table
}

func (f *infra) close() {
	if f.table != nil {
		f.table.close()
	}
}

// ensure makes what all pods share unless it was made before, and returns the
// bridge's index and the MTU of links.
func (n *Network) ensure(ctx context.Context) (bridge, mtu int, err error) {
	f := &n.infra
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made {
		there, err := f.table.exists()
		if there || err != nil {
			return f.bridge, f.mtu, err
		}
		n.log.Warn("the pod network's nftables table is gone, making it anew", "table", n.cfg.Table)
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	gateways := n.ipam.gateways()
	if f.mtu = n.cfg.MTU; f.mtu == 0 {
		f.mtu = defaultMTU(n.handle)
	}
	if f.bridge, err = makeBridge(n.handle, n.cfg.Bridge, f.mtu, gateways); err != nil {
		return 0, 0, err
	}
	if err := n.checkOverlap(f.bridge); err != nil {
		return 0, 0, err
	}
	if err := inNetns(n.ns, n.hostSysctls); err != nil {
		return 0, 0, err
	}
	up := newRequest("bringing bridge "+n.cfg.Bridge+" up", unix.RTM_SETLINK, 0)
	up.AddData(linkUp(f.bridge))
	requests := []request{up}
	for _, gw := range gateways {
		requests = append(requests, addAddress(f.bridge, gw))
	}
	if err := n.host.do(requests...); err != nil {
		return 0, 0, fmt.Errorf("bridge %s: %w", n.cfg.Bridge, err)
	}
	if err := await(ctx, n.host, addressesWork(gateways)...); err != nil {
		return 0, 0, fmt.Errorf("bridge %s: %w", n.cfg.Bridge, err)
	}
	if err := n.openTableLocked(); err != nil {
		return 0, 0, err
	}
	if err := f.table.rebuild(n.cfg.Bridge, n.ipam.networks(), n.elements()); err != nil {
		return 0, 0, err
	}
	f.made = true
	n.log.Info("pod network made", "bridge", n.cfg.Bridge, "gateways", gateways, "mtu", f.mtu)
	return f.bridge, f.mtu, nil
}

// openTableLocked needs infra.mu.
func (n *Network) openTableLocked() (err error) {
	if n.infra.table == nil {
		n.infra.table, err = openTable(n.ns, n.cfg.Table)
	}
	return err
}

// madeTable returns the table if it was made, else nil.
func (f *infra) madeTable() *table {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.made {
		return nil
	}
	return f.table
}

// lost makes the next ensure make everything anew: somebody took it away.
func (f *infra) lost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made = false
}

// checkOverlap refuses a pod network of which the host routes a part
// elsewhere. (A route to more than the pod network gives way to ours.)
func (n *Network) checkOverlap(bridge int) error {
	routes, err := n.handle.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == bridge || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		dst, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if !ok || ones == 0 {
			continue
		}
		route := netip.PrefixFrom(dst, ones)
		for _, p := range []netip.Prefix{n.cfg.IPv4, n.cfg.IPv6} {
			if p.IsValid() && p.Overlaps(route) && route.Bits() >= p.Bits() {
				name := fmt.Sprintf("link %d", r.LinkIndex)
				if l, err := n.handle.LinkByIndex(r.LinkIndex); err == nil {
					name = l.Attrs().Name
				}
				return fmt.Errorf("the pod network %s overlaps %s, which this host routes through %s: choose another pod network", p, route, name)
			}
		}
	}
	return nil
}

// hostSysctls lets the host forward. It runs in the host's namespace, when
// the bridge exists.
func (n *Network) hostSysctls() error {
	bridge := n.cfg.Bridge
	settings := []struct{ path, value string }{}
	if n.cfg.IPv4.IsValid() {
		settings = append(settings,
			struct{ path, value string }{"net/ipv4/ip_forward", "1"},
			// Connections of the host's 127.0.0.1 to a host port leave
			// through the bridge with that source until postrouting gives
			// them another. The table keeps pods from making use of it.
			struct{ path, value string }{"net/ipv4/conf/" + bridge + "/route_localnet", "1"})
	}
	if n.cfg.IPv6.IsValid() {
		if err := keepRouterAdvertisements(); err != nil {
			return err
		}
		settings = append(settings,
			struct{ path, value string }{"net/ipv6/conf/all/forwarding", "1"},
			struct{ path, value string }{"net/ipv6/conf/" + bridge + "/disable_ipv6", "0"},
			struct{ path, value string }{"net/ipv6/conf/" + bridge + "/accept_ra", "0"},
			struct{ path, value string }{"net/ipv6/conf/" + bridge + "/accept_dad", "0"})
	}
	for _, s := range settings {
		if was, err := readSysctl(s.path); err == nil && was == s.value {
			continue // perhaps read-only, and right
		}
		if err := writeSysctl(s.path, s.value); err != nil {
			return fmt.Errorf("setting %s to %s: %w", s.path, s.value, err)
		}
	}
	return nil
}

// keepRouterAdvertisements keeps the host's own IPv6 routes: a forwarding host
// ignores advertisements unless accept_ra is 2 (ip-sysctl.rst).
func keepRouterAdvertisements() error {
	if on, err := readSysctl("net/ipv6/conf/all/forwarding"); err != nil || on == "1" {
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("this kernel has no IPv6: give the pod network no IPv6 prefix")
		}
		return err
	}
	confs, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range confs {
		if was, err := os.ReadFile(path); err != nil || string(was) != "1\n" {
			continue // the link went, or it is not listening
		}
		if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keeping router advertisements: %w", err)
		}
	}
	return nil
}

// defaultMTU is that of the interface with the default route: larger packets
// would be fragmented or lost there.
func defaultMTU(h *netlink.Handle) int {
	const ethernet = 1500
	routes, err := h.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		return ethernet
	}
	for _, r := range routes {
		if r.Table != unix.RT_TABLE_MAIN || !isDefault(r.Dst) || r.LinkIndex == 0 {
			continue
		}
		if l, err := h.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 1280 {
			return min(l.Attrs().MTU, 65535)
		}
	}
	return ethernet
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}
