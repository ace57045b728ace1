package network

import (
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
)

// A host port is taken in three places: in the records, which know the pods;
// by a socket of ours bound to it (see reservation); and in the table, which
// sends the packets to the pod.

func (p PortMapping) String() string {
	if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
		return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
}

// serves tells whether the mapping is for pod addresses of this family.
func (p PortMapping) serves(is4 bool) bool {
	return !p.HostIP.IsValid() || p.HostIP.Is4() == is4
}

// clashes tells whether a packet could belong to both mappings.
func (p PortMapping) clashes(q PortMapping) bool {
	if p.Protocol != q.Protocol || p.HostPort != q.HostPort {
		return false
	}
	if !p.HostIP.IsValid() || !q.HostIP.IsValid() {
		return true
	}
	if p.HostIP.Is4() != q.HostIP.Is4() {
		return false
	}
	return p.HostIP == q.HostIP || p.HostIP.IsUnspecified() || q.HostIP.IsUnspecified()
}

// checkPorts refuses mappings that clash among themselves or that no address
// of the pod can serve.
func checkPorts(ports []PortMapping, networks []netip.Prefix) error {
	for i, p := range ports {
		for _, q := range ports[:i] {
			if p.clashes(q) {
				return fmt.Errorf("host port %s is asked for twice: %w", p, errdefs.ErrInvalidArgument)
			}
		}
		served := false
		for _, n := range networks {
			served = served || p.serves(n.Addr().Is4())
		}
		if !served {
			return fmt.Errorf("host port %s: the pod network has no addresses of that family: %w", p, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// enter puts a record among the pods, unless another has one of its ports.
func (n *Network) enter(r *record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range r.Ports {
		for _, other := range n.pods {
			for _, q := range other.Ports {
				if other.portsFree || !p.clashes(q) {
					continue
				}
				return fmt.Errorf("host port %s is in use by pod %s: %w", p, other.ID, ErrPortInUse)
			}
		}
	}
	n.pods[r.ID] = r
	return nil
}
