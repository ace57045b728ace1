package network

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestPool(t *testing.T) {
	for _, c := range []struct{ prefix, gateway, addresses string }{
		{"10.0.0.0/30", "10.0.0.1/30", "[10.0.0.2/30]"},
		{"10.0.0.8/29", "10.0.0.9/29", "[10.0.0.10/29 10.0.0.11/29 10.0.0.12/29 10.0.0.13/29 10.0.0.14/29]"},
		{"fd00::/126", "fd00::1/126", "[fd00::2/126 fd00::3/126]"},
	} {
		p, err := newPool(netip.MustParsePrefix(c.prefix))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.gateway().String(); got != c.gateway {
			t.Errorf("%s: gateway %s, want %s", c.prefix, got, c.gateway)
		}
		var all []netip.Prefix
		for ip, ok := p.take(); ok; ip, ok = p.take() {
			all = append(all, ip)
		}
		if got := fmt.Sprint(all); got != c.addresses {
			t.Errorf("%s: addresses %s, want %s", c.prefix, got, c.addresses)
		}
		// Any order of freeing and taking, and never an address twice.
		p.free(all[0].Addr())
		p.free(netip.MustParseAddr("192.0.2.1"))
		p.free(p.gateway().Addr())
		if ip, ok := p.take(); !ok || ip != all[0] {
			t.Errorf("%s: after freeing %s took %s, %v", c.prefix, all[0], ip, ok)
		}
		if ip, ok := p.take(); ok {
			t.Errorf("%s: took %s from an empty pool", c.prefix, ip)
		}
	}
	for _, prefix := range []string{"10.0.0.0/31", "10.0.0.1/32", "10.0.0.1/24", "fd00::/127"} {
		if _, err := newPool(netip.MustParsePrefix(prefix)); err == nil {
			t.Errorf("%s was taken for a pod network", prefix)
		}
	}
}

// An address that was freed comes again last.
func TestPoolTakesTurns(t *testing.T) {
	for _, prefix := range []string{"10.0.0.0/24", "fd00::/64", "10.0.0.0/8"} {
		p, err := newPool(netip.MustParsePrefix(prefix))
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[netip.Prefix]bool)
		for i := range min(p.size, 1000) {
			ip, ok := p.take()
			if !ok || seen[ip] {
				t.Fatalf("%s: the %dth address is %s, %v", prefix, i, ip, ok)
			}
			seen[ip] = true
			p.free(ip.Addr())
		}
	}
}
