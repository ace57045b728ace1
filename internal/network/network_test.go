package network

import (
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
