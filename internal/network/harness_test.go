package network

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newNetns makes a network namespace that lives until the test ends.
func newNetns(t testing.TB) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- result{f, err}
	}()
	r := <-c
	if r.err != nil {
		t.Fatalf("making a network namespace (needs root): %v", r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

// in runs fn in the namespace and fails the test on its error.
func in(t testing.TB, ns *os.File, fn func() error) {
	t.Helper()
	if err := inNetns(ns, fn); err != nil {
		t.Fatal(err)
	}
}

// A world is a host with its pod network, in a namespace of its own, and an
// outside machine that the host reaches but that knows nothing of pods.
type world struct {
	t       testing.TB
	host    *os.File
	outside *os.File
	cfg     Config
	*Network
}

const (
	hostIP4    = "192.0.2.1"
	hostIP6    = "2001:db8::1"
	outsideIP4 = "192.0.2.2"
	outsideIP6 = "2001:db8::2"
	secondIP4  = "192.0.2.3" // of the host
	secondIP6  = "2001:db8::3"
)

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, host: newNetns(t), outside: newNetns(t)}
	w.cfg = Config{
		StateDir: t.TempDir(), RunDir: tmpfsDir(t), Netns: w.host, Bridge: "unipod0",
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	w.wire()
	w.open()
	return w
}

// tmpfsDir is a directory on the kind of file system RunDir is meant to be on.
func tmpfsDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "unipod-network-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (w *world) open() {
	w.t.Helper()
	n, err := Open(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Network = n
	w.t.Cleanup(func() { n.Close() })
}

// wire joins host and outside by a veth pair.
func (w *world) wire() {
	w.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(w.host.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "uplink"
	veth.PeerNamespace = netlink.NsFd(w.outside.Fd())
	if err := h.LinkAdd(veth); err != nil {
		w.t.Fatal(err)
	}
	for ns, ips := range map[*os.File][]string{
		w.host:    {hostIP4 + "/24", secondIP4 + "/24", secondIP6 + "/64", hostIP6 + "/64"},
		w.outside: {outsideIP4 + "/24", outsideIP6 + "/64"},
	} {
		c, err := dialIn(ns)
		if err != nil {
			w.t.Fatal(err)
		}
		index := 0
		if err := c.do(loopbackUp(), indexOf("uplink", &index)); err != nil {
			w.t.Fatal(err)
		}
		up := newRequest("up", unix.RTM_SETLINK, 0)
		up.AddData(linkUp(index))
		requests := []request{up}
		for _, ip := range ips {
			requests = append(requests, addAddress(index, netip.MustParsePrefix(ip)))
		}
		if err := c.do(requests...); err != nil {
			w.t.Fatal(err)
		}
		c.Close()
	}
	waitCarrier(w.t, w.host, "uplink")
	waitCarrier(w.t, w.outside, "uplink")
}

func waitCarrier(t testing.TB, ns *os.File, name string) {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for range 500 {
		if l, err := h.LinkByName(name); err == nil && l.Attrs().OperState == netlink.OperUp {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("link %s never came up", name)
}

// pod is a pod of the test: a namespace with what Setup gave it.
type pod struct {
	id string
	ns *os.File
	*Attachment
}

func (w *world) pod(id string, ports ...PortMapping) *pod {
	w.t.Helper()
	p := &pod{id: id, ns: newNetns(w.t)}
	a, err := w.Setup(w.t.Context(), Request{ID: id, Netns: p.ns, Ports: ports})
	if err != nil {
		w.t.Fatal(err)
	}
	p.Attachment = a
	return p
}

func (p *pod) ip4() netip.Addr { return p.IPs[0].Addr() }

// serve answers every connection or datagram to addr in ns with "name
// <address the peer is seen with>".
func serve(t testing.TB, ns *os.File, network, addr, name string) {
	t.Helper()
	in(t, ns, func() error {
		switch network {
		case "tcp":
			l, err := net.Listen(network, addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
					fmt.Fprintf(c, "%s %s", name, host)
					c.Close()
				}
			}()
		case "udp":
			l, err := net.ListenPacket(network, addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				buf := make([]byte, 64)
				for {
					_, from, err := l.ReadFrom(buf)
					if err != nil {
						return
					}
					host, _, _ := net.SplitHostPort(from.String())
					l.WriteTo(fmt.Appendf(nil, "%s %s", name, host), from)
				}
			}()
		default:
			return fmt.Errorf("unknown network %q", network)
		}
		return nil
	})
}

// ask returns what the server at addr answers to a client in ns.
func ask(ns *os.File, network, addr string) (answer string, err error) {
	err = inNetns(ns, func() error {
		// Patient enough for a loaded machine; a lost datagram stays lost.
		c, err := net.DialTimeout(network, addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 128)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		return err
	})
	return answer, err
}

// expect fails the test unless the answer is as wanted.
func expect(t testing.TB, what string, ns *os.File, network, addr, want string) {
	t.Helper()
	got, err := ask(ns, network, addr)
	if err != nil {
		t.Errorf("%s: %s %s: %v", what, network, addr, err)
	} else if got != want {
		t.Errorf("%s: %s %s answered %q, want %q", what, network, addr, got, want)
	}
}

func hostport(ip any, port int) string { return net.JoinHostPort(fmt.Sprint(ip), fmt.Sprint(port)) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}
