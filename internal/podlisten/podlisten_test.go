package podlisten

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"unipod.dev/unipod/test/isolate"
)

func TestMain(m *testing.M) { isolate.Network(m) }

// world is a host with the pods' link and another, each with a peer behind it.
// The links are the process's.
type world struct{ t *testing.T }

func newWorld(t *testing.T) *world {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	w := &world{t}
	w.must(w.up("lo"))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// link makes one with a peer in a namespace of its own, which sends all it
// has to the host by it.
func (w *world) link(name, host, peer string) netns.NsHandle {
	w.t.Helper()
	here, err := netns.Get()
	w.must(err)
	defer here.Close()
	there, err := netns.New()
	w.must(err)
	w.t.Cleanup(func() { there.Close() })
	w.must(netns.Set(here))
	w.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(there)}))
	l, err := netlink.LinkByName(name)
	w.must(err)
	a, err := netlink.ParseAddr(host)
	w.must(err)
	w.must(netlink.AddrAdd(l, a))
	w.must(netlink.LinkSetUp(l))
	gateway, _, err := net.ParseCIDR(host)
	w.must(err)
	w.within(there, func() {
		w.must(w.up("eth0"))
		eth, err := netlink.LinkByName("eth0")
		w.must(err)
		a, err := netlink.ParseAddr(peer)
		w.must(err)
		w.must(netlink.AddrAdd(eth, a))
		w.must(netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway}))
	})
	return there
}

func (w *world) within(ns netns.NsHandle, f func()) {
	w.t.Helper()
	here, err := netns.Get()
	w.must(err)
	defer here.Close()
	w.must(netns.Set(ns))
	defer func() { w.must(netns.Set(here)) }()
	f()
}

// reaches tells whether a connection from this thread's namespace is answered.
func reaches(to string, patience time.Duration) bool {
	// A dialer without goroutines of its own: those have other namespaces.
	c, err := (&net.Dialer{Timeout: patience, FallbackDelay: -1}).Dial("tcp4", to)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	return err == nil && string(b) == "hello"
}

// TestWhoReaches: pods and the host do, by whatever address of its own; a
// neighbour on another link doesn't, though it knows the way.
func TestWhoReaches(t *testing.T) {
	w := newWorld(t)
	l, err := Listen("pods0", netip.MustParseAddrPort("10.66.0.1:0"), slog.New(slog.DiscardHandler))
	w.must(err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	at := l.Addr().String()
	lan := w.link("lan0", "192.0.2.1/24", "192.0.2.2/24")
	for range 2 {
		pods := w.link("pods0", "10.66.0.1/16", "10.66.0.2/16")
		patient := time.Now().Add(20 * time.Second)
		for ok := false; !ok; {
			if w.within(pods, func() { ok = reaches(at, time.Second) }); time.Now().After(patient) {
				t.Fatal("pods don't reach it")
			}
		}
		if !reaches(at, 5*time.Second) {
			t.Error("the host doesn't reach it")
		}
		w.within(lan, func() {
			if reaches(at, 300*time.Millisecond) {
				t.Error("a neighbour reaches it")
			}
		})
		// The neighbour takes an address of the pods'.
		w.within(lan, func() {
			eth, err := netlink.LinkByName("eth0")
			w.must(err)
			stolen, _ := netlink.ParseAddr("10.66.0.2/32")
			w.must(netlink.AddrAdd(eth, stolen))
			d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 66, 0, 2)}}
			if c, err := d.Dial("tcp4", at); err == nil {
				c.Close()
				t.Error("a neighbour with a pod's address reaches it")
			}
			w.must(netlink.AddrDel(eth, stolen))
		})
		link, err := netlink.LinkByName("pods0")
		w.must(err)
		w.must(netlink.LinkDel(link))
	}
	w.must(l.Close())
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
