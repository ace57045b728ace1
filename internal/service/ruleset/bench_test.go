package ruleset

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/service/plan"
)

// many are 1,000 Services of 10 backends each, of 200 pods.
func many() map[string][]plan.Port {
	all := map[string][]plan.Port{}
	for i := range 1000 {
		p := plan.Port{Key: plan.Key{Addr: netip.AddrFrom4([4]byte{10, 67, byte(1 + i/250), byte(1 + i%250)}), Protocol: v1.ProtocolTCP, Port: 80}, Name: "bench"}
		for j := range 10 {
			n := (i + 7*j) % 200
			p.Backends = append(p.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 66, 9, byte(1 + n)}), 8080))
		}
		all[fmt.Sprint("s", i)] = []plan.Port{p}
	}
	return all
}

// BenchmarkSync: what is one change among 1,000 Services of 10 backends? Its
// floor is one element added and removed in an otherwise empty table.
func BenchmarkSync(b *testing.B) {
	for _, bc := range []struct {
		name string
		all  map[string][]plan.Port
	}{{"of1000", many()}, {"floor", nil}} {
		b.Run(bc.name, func(b *testing.B) {
			h := newHost(b)
			must(b, h.table.Replace(bc.all))
			one := many()["s500"]
			less := []plan.Port{one[0]}
			less[0].Backends = one[0].Backends[:9]
			for i := 0; b.Loop(); i++ {
				ports := one
				if i%2 == 0 {
					ports = less
				}
				must(b, h.table.Sync(map[string][]plan.Port{"s500": ports}))
			}
		})
	}
}

// BenchmarkReplace: all of them, into an empty kernel and found there again.
func BenchmarkReplace(b *testing.B) {
	h := newHost(b)
	all := many()
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			must(b, h.table.Remove())
			must(b, h.table.Replace(all))
		}
	})
	b.Run("adopted", func(b *testing.B) {
		for b.Loop() {
			must(b, h.table.Replace(all))
		}
	})
}

// BenchmarkConnect: a connection to a Service's address beside one to the
// backend's own, one after the other and from a pod on the same machine, with
// 1,000 other Services in the kernel.
func BenchmarkConnect(b *testing.B) {
	h := newHost(b)
	server, client := h.pod().serve(), h.pod()
	all := many()
	all["web"] = service("10.67.0.9:80", 0, server)
	must(b, h.table.Replace(all))
	var direct float64
	for _, bc := range []struct{ name, to string }{{"direct", server.ip4 + ":8080"}, {"service", "10.67.0.9:80"}} {
		b.Run(bc.name, func(b *testing.B) {
			begun, n := time.Now(), 0
			within(b, client.ns, func() {
				for ; b.Loop(); n++ {
					c, err := net.Dial("tcp4", bc.to)
					must(b, err)
					// Ports are not to run out.
					c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
			})
			each := time.Since(begun).Seconds() / float64(n)
			b.ReportMetric(1/each, "conns/s")
			if bc.name == "direct" {
				direct = each
			} else if direct > 0 {
				b.ReportMetric(each/direct, "of-direct")
			}
		})
	}
}
