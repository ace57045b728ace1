package network

import (
	"net/netip"
	"testing"
)

func TestReach(t *testing.T) {
	w := newWorld(t)
	a, b := w.pod("a"), w.pod("b")
	for i, ip := range []string{outsideIP4, outsideIP6} {
		serve(t, b.ns, "tcp", hostport(b.IPs[i].Addr(), 80), "b")
		serve(t, b.ns, "udp", hostport(b.IPs[i].Addr(), 80), "b")
		serve(t, w.outside, "tcp", hostport(ip, 80), "outside")
		serve(t, w.outside, "udp", hostport(ip, 80), "outside")
		serve(t, w.host, "tcp", hostport(b.Gateways[i], 80), "host")
		for _, network := range []string{"tcp", "udp"} {
			expect(t, "pod to pod", a.ns, network, hostport(b.IPs[i].Addr(), 80), "b "+a.IPs[i].Addr().String())
			expect(t, "host to pod", w.host, network, hostport(b.IPs[i].Addr(), 80), "b "+b.Gateways[i].String())
		}
		expect(t, "pod to host", a.ns, "tcp", hostport(b.Gateways[i], 80), "host "+a.IPs[i].Addr().String())
	}
	expect(t, "pod to outside", a.ns, "tcp", hostport(outsideIP4, 80), "outside "+hostIP4)
	expect(t, "pod to outside", a.ns, "udp", hostport(outsideIP4, 80), "outside "+hostIP4)
	expect(t, "pod to outside", a.ns, "tcp", hostport(outsideIP6, 80), "outside "+hostIP6)
	expect(t, "pod to outside", a.ns, "udp", hostport(outsideIP6, 80), "outside "+hostIP6)
}

func TestHostPorts(t *testing.T) {
	w := newWorld(t)
	p := w.pod("web",
		PortMapping{HostPort: 8080, ContainerPort: 80},
		PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: UDP},
		PortMapping{HostPort: 8081, ContainerPort: 80, HostIP: netip.MustParseAddr(secondIP4)},
		PortMapping{HostPort: 8082, ContainerPort: 80, HostIP: netip.MustParseAddr(secondIP6)},
		PortMapping{HostPort: 8083, ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1")},
	)
	other := w.pod("other")
	for _, ip := range p.IPs {
		serve(t, p.ns, "tcp", hostport(ip.Addr(), 80), "web")
		serve(t, p.ns, "udp", hostport(ip.Addr(), 80), "web")
	}
	gw4, gw6 := p.Gateways[0].String(), p.Gateways[1].String()
	for _, network := range []string{"tcp", "udp"} {
		expect(t, "outside", w.outside, network, hostport(hostIP4, 8080), "web "+outsideIP4)
		expect(t, "outside", w.outside, network, hostport(secondIP4, 8080), "web "+outsideIP4)
		expect(t, "outside", w.outside, network, hostport(hostIP6, 8080), "web "+outsideIP6)
		expect(t, "host by its address", w.host, network, hostport(hostIP4, 8080), "web "+hostIP4)
		expect(t, "host by its address", w.host, network, hostport(hostIP6, 8080), "web "+hostIP6)
		expect(t, "localhost", w.host, network, "127.0.0.1:8080", "web "+gw4)
		expect(t, "localhost", w.host, network, "[::1]:8080", "web "+gw6)
		for _, client := range []*pod{p, other} {
			expect(t, "pod "+client.id, client.ns, network, hostport(hostIP4, 8080), "web "+gw4)
			expect(t, "pod "+client.id, client.ns, network, hostport(hostIP6, 8080), "web "+gw6)
			expect(t, "pod "+client.id+" by gateway", client.ns, network, hostport(gw4, 8080), "web "+gw4)
			expect(t, "pod "+client.id+" by gateway", client.ns, network, hostport(gw6, 8080), "web "+gw6)
		}
	}
	expect(t, "host IP", w.outside, "tcp", hostport(secondIP4, 8081), "web "+outsideIP4)
	expect(t, "host IP", w.outside, "tcp", hostport(secondIP6, 8082), "web "+outsideIP6)
	expect(t, "host IP 127.0.0.1", w.host, "tcp", "127.0.0.1:8083", "web "+gw4)
}
