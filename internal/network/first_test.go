package network

import (
	"fmt"
	"testing"
	"time"
)

// Packets that a pod sends right after Setup arrive: none of its connections
// begins with a retransmission, which takes the kernel a second.
func TestReadyWhenSetUp(t *testing.T) {
	w := newWorld(t)
	first := w.pod("first")
	for _, gw := range first.Gateways {
		serve(t, w.host, "tcp", hostport(gw, 80), "host")
	}
	const pods = 20
	slow := 0
	for i := range pods {
		p := w.pod(fmt.Sprint("p", i))
		began := time.Now()
		// IPv6 in every second pod: the first conversation is the test.
		j := i % 2
		expect(t, "pod to host", p.ns, "tcp", hostport(p.Gateways[j], 80), "host "+p.IPs[j].Addr().String())
		if time.Since(began) >= time.Second {
			slow++
		}
	}
	// A busy machine may be slow at times; lost packets would make it many.
	if slow > pods/10 {
		t.Errorf("%d of %d pods needed a second or more for their first connections", slow, pods)
	}
}
