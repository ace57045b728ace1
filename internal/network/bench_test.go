package network

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func quiet(w *world) {
	w.Network.log = slog.New(slog.NewTextHandler(io.Discard, nil))
}

func BenchmarkSetup(b *testing.B) {
	for _, bench := range []struct {
		name  string
		ports int
	}{{"plain", 0}, {"ports=2", 2}} {
		b.Run(bench.name, func(b *testing.B) {
			w := newWorld(b)
			quiet(w)
			w.pod("first")
			nss := namespaces(b)
			b.ResetTimer()
			for i := range b.N {
				req := Request{ID: fmt.Sprint("p", i), Netns: nss[i]}
				for p := range bench.ports {
					req.Ports = append(req.Ports, PortMapping{HostPort: uint16(10000 + i*bench.ports + p), ContainerPort: 80})
				}
				if _, err := w.Setup(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			for i := range b.N {
				w.Teardown(b.Context(), fmt.Sprint("p", i))
			}
		})
	}
}

func BenchmarkSetupParallel(b *testing.B) {
	w := newWorld(b)
	quiet(w)
	w.pod("first")
	nss := namespaces(b)
	var next atomic.Int64
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= b.N {
					return
				}
				if _, err := w.Setup(b.Context(), Request{ID: fmt.Sprint("p", i), Netns: nss[i]}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	for i := range b.N {
		w.Teardown(b.Context(), fmt.Sprint("p", i))
	}
}

func BenchmarkTeardown(b *testing.B) {
	w := newWorld(b)
	quiet(w)
	nss := namespaces(b)
	for i := range b.N {
		if _, err := w.Setup(b.Context(), Request{ID: fmt.Sprint("p", i), Netns: nss[i]}); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for i := range b.N {
		if err := w.Teardown(b.Context(), fmt.Sprint("p", i)); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
}

// BenchmarkFloor is the netlink messages a pod can't do without, sent by hand
// over sockets that are open already.
func BenchmarkFloor(b *testing.B) {
	w := newWorld(b)
	quiet(w)
	first := w.pod("first")
	h, err := netlink.NewHandleAt(netns.NsHandle(w.host.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	bridge, err := h.LinkByName(w.cfg.Bridge)
	if err != nil {
		b.Fatal(err)
	}
	nss := namespaces(b)
	socks := make([]*conn, b.N)
	for i := range socks {
		if socks[i], err = dialIn(nss[i]); err != nil {
			b.Fatal(err)
		}
		defer socks[i].Close()
	}
	b.ResetTimer()
	for i := range b.N {
		a := *first.Attachment
		a.IPs = nil
		a.HostVeth = vethName(fmt.Sprint("p", i))
		for _, p := range w.ipam.pools {
			ip, _ := p.take()
			a.IPs = append(a.IPs, ip)
		}
		if _, err := makeVeth(w.Network.host, bridge.Attrs().Index, nss[i], "x", &a); err != nil {
			b.Fatal(err)
		}
		if _, err := configurePod(socks[i], &a); err != nil {
			b.Fatal(err)
		}
	}
}

func namespaces(b *testing.B) []*os.File {
	nss := make([]*os.File, b.N)
	for i := range nss {
		nss[i] = newNetns(b)
	}
	return nss
}
