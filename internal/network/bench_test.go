package network

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func quiet(w *world) {
	w.Network.log = slog.New(slog.NewTextHandler(io.Discard, nil))
}

// BenchmarkSetup compares Setup with its floor: the netlink messages a pod can't
// do without, over sockets that are open already, and no waiting for the
// kernel's workers.
func BenchmarkSetup(b *testing.B) {
	for _, ports := range []int{0, 2} {
		b.Run(fmt.Sprint("ports=", ports), func(b *testing.B) {
			w := newWorld(b)
			quiet(w)
			w.pod("first")
			nss, floors := namespaces(b), namespaces(b)
			var took, floor []time.Duration
			b.ResetTimer()
			for i := range b.N {
				req := Request{ID: fmt.Sprint("p", i), Netns: nss[i]}
				for p := range ports {
					req.Ports = append(req.Ports, PortMapping{HostPort: uint16(10000 + i*ports + p), ContainerPort: 80})
				}
				began := time.Now()
				if _, err := w.Setup(b.Context(), req); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			b.StopTimer()
			// Not in turns with Setup: what each leaves to the kernel's workers
			// would be in the other's way.
			for i := range b.N {
				floor = append(floor, w.floor(i, floors[i]))
			}
			b.ReportMetric(float64(median(took).Microseconds()), "p50-µs")
			b.ReportMetric(float64(median(floor).Microseconds()), "floor-µs")
			b.ReportMetric(float64(median(took))/float64(median(floor)), "x-floor")
		})
	}
}

// floor makes a link like a pod's by hand and returns the time it took.
func (w *world) floor(i int, ns *os.File) time.Duration {
	w.t.Helper()
	bridge, mtu, err := w.ensure(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	ips, err := w.ipam.lease()
	if err != nil {
		w.t.Fatal(err)
	}
	id := fmt.Sprint("floor", i)
	a := Attachment{IPs: ips, Gateways: w.gatewaysOf(ips), MAC: macOf(ips[0].Addr()).String(), HostVeth: vethName(id), MTU: mtu}
	inside, err := dialIn(ns)
	if err != nil {
		w.t.Fatal(err)
	}
	defer inside.Close()
	began := time.Now()
	if _, err := makeVeth(w.Network.host, bridge, ns, id, &a); err != nil {
		w.t.Fatal(err)
	}
	if _, err := configurePod(inside, &a); err != nil {
		w.t.Fatal(err)
	}
	return time.Since(began)
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
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

func namespaces(b *testing.B) []*os.File {
	nss := make([]*os.File, b.N)
	for i := range nss {
		nss[i] = newNetns(b)
	}
	return nss
}
