package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
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

func TestPortConflicts(t *testing.T) {
	w := newWorld(t)
	first := w.pod("first",
		PortMapping{HostPort: 8080, ContainerPort: 80},
		PortMapping{HostPort: 9090, ContainerPort: 80, HostIP: netip.MustParseAddr(hostIP4)})
	in(t, w.host, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:7070")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	before := w.snapshot()
	for _, c := range []struct {
		port PortMapping
		want string // in the error, "" = none
	}{
		{PortMapping{HostPort: 8080, ContainerPort: 1}, "host port 8080/TCP is in use by pod first"},
		{PortMapping{HostPort: 8080, ContainerPort: 1, HostIP: netip.MustParseAddr(hostIP6)}, "host port [2001:db8::1]:8080/TCP is in use by pod first"},
		{PortMapping{HostPort: 9090, ContainerPort: 1, HostIP: netip.IPv4Unspecified()}, "host port 9090/TCP is in use by pod first"},
		{PortMapping{HostPort: 7070, ContainerPort: 1}, "host port 7070/TCP is in use by another process of this host"},
		{PortMapping{HostPort: 8080, ContainerPort: 1, Protocol: UDP}, ""},
		{PortMapping{HostPort: 9090, ContainerPort: 1, HostIP: netip.MustParseAddr(secondIP4)}, ""},
		{PortMapping{HostPort: 9090, ContainerPort: 1, HostIP: netip.IPv6Unspecified()}, ""},
		{PortMapping{HostPort: 7070, ContainerPort: 1, HostIP: netip.MustParseAddr(hostIP4)}, ""},
	} {
		_, err := w.Setup(t.Context(), Request{ID: "second", Netns: newNetns(t), Ports: []PortMapping{c.port}})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("port %s: %v", c.port, err)
		case c.want != "" && (!errors.Is(err, ErrPortInUse) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("port %s: error %v, want %q", c.port, err, c.want)
		}
		if err := w.Teardown(t.Context(), "second"); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := w.snapshot(); after != before {
			t.Fatalf("port %s left behind:\n%s\nwant\n%s", c.port, after, before)
		}
	}
	// A process of the host can't take a pod's port either.
	err := inNetns(w.host, func() error {
		l, err := net.Listen("tcp", ":8080")
		if err == nil {
			l.Close()
		}
		return err
	})
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening on a pod's host port: %v, want %v", err, unix.EADDRINUSE)
	}
	// Free at once, for pods and processes.
	if err := w.Teardown(t.Context(), first.id); err != nil {
		t.Fatal(err)
	}
	w.pod("third", PortMapping{HostPort: 8080, ContainerPort: 80})
}

func TestAddressesRunOut(t *testing.T) {
	w := newWorld(t)
	w.Close()
	w.cfg.IPv4, w.cfg.IPv6 = netip.MustParsePrefix("10.9.8.0/29"), netip.Prefix{}
	w.open()
	var got []string
	for i := range 5 {
		p := w.pod(fmt.Sprint("p", i))
		got = append(got, p.IPs[0].String())
	}
	if want := "[10.9.8.2/29 10.9.8.3/29 10.9.8.4/29 10.9.8.5/29 10.9.8.6/29]"; fmt.Sprint(got) != want {
		t.Errorf("addresses %v, want %s", got, want)
	}
	before := w.snapshot()
	_, err := w.Setup(t.Context(), Request{ID: "late", Netns: newNetns(t)})
	if !errors.Is(err, ErrNoFreeIP) || !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v, want %v", err, ErrNoFreeIP)
	}
	if want := "network of pod late: all 5 addresses of the pod network 10.9.8.0/29 are in use: no free IP address"; err != nil && !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %q, want %q", err, want)
	}
	if after := w.snapshot(); after != before {
		t.Errorf("left behind:\n%s\nwant\n%s", after, before)
	}
	// What is only waiting to be taken down is taken down for who needs it.
	if err := w.Teardown(t.Context(), "p3"); err != nil {
		t.Fatal(err)
	}
	if p := w.pod("late"); p.ip4().String() != "10.9.8.5" {
		t.Errorf("got %s, want the address that became free", p.ip4())
	}
}

func TestSetupAgain(t *testing.T) {
	w := newWorld(t)
	ports := []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	p := w.pod("p", ports...)
	again, err := w.Setup(t.Context(), Request{ID: "p", Netns: p.ns, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(again) != fmt.Sprint(p.Attachment) {
		t.Errorf("the second time %v, the first time %v", again, p.Attachment)
	}
	// The pod got a new namespace: it gets a new network, the old one goes.
	moved := w.pod("p", ports...)
	if moved.ip4() == p.ip4() {
		t.Errorf("still at %s", moved.ip4())
	}
	serve(t, moved.ns, "tcp", hostport(moved.ip4(), 80), "moved")
	expect(t, "moved", w.outside, "tcp", hostport(hostIP4, 8080), "moved "+outsideIP4)
	if links := interfaces(t, p.ns); strings.Contains(links, podLink) {
		t.Errorf("the old namespace still has %s", links)
	}
	// Somebody deleted its link: it gets another.
	in(t, w.host, func() error {
		l, err := netlink.LinkByName(moved.HostVeth)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	mended, err := w.Setup(t.Context(), Request{ID: "p", Netns: moved.ns, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, w.host, "tcp", hostport(mended.Gateways[0], 80), "host")
	expect(t, "mended", moved.ns, "tcp", hostport(mended.Gateways[0], 80), "host "+mended.IPs[0].Addr().String())
}

func TestSetupFails(t *testing.T) {
	w := newWorld(t)
	cancelled, cancel := context.WithCancel(t.Context())
	defer cancel()
	var midway atomic.Bool
	w.fault = func(point string) {
		if point == "connected" && midway.Load() {
			cancel()
		}
	}
	w.pod("other")
	before := w.snapshot()
	occupied := newNetns(t)
	in(t, occupied, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = podLink
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	})
	file, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		name string
		ctx  context.Context
		req  Request
		want string
	}{
		{"eth0 exists", t.Context(), Request{ID: "p", Netns: occupied, Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}}, "network of pod p: creating veth pair unip148de9c5a7a: file exists"},
		{"cancelled midway", cancelled, Request{ID: "p", Netns: newNetns(t), Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}}, "network of pod p: context canceled"},
		{"no namespace", t.Context(), Request{ID: "p", Netns: file}, "/proc/self/status is not a network namespace: invalid argument"},
		{"nil namespace", t.Context(), Request{ID: "p"}, "pod p: no network namespace given: invalid argument"},
		{"bad ID", t.Context(), Request{ID: "../p", Netns: occupied}, `pod ID "../p" is not 1 to 128 letters, digits, '_', '.' or '-': invalid argument`},
		{"bad protocol", t.Context(), Request{ID: "p", Netns: occupied, Ports: []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "ICMP"}}}, `pod p: port 1: protocol "ICMP" is not TCP, UDP or SCTP: invalid argument`},
		{"twice", t.Context(), Request{ID: "p", Netns: occupied, Ports: []PortMapping{{HostPort: 1, ContainerPort: 1}, {HostPort: 1, ContainerPort: 2}}}, "network of pod p: host port 1/TCP is asked for twice: invalid argument"},
	} {
		midway.Store(c.ctx == cancelled)
		_, err := w.Setup(c.ctx, c.req)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %s", c.name, err, c.want)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := w.snapshot(); after != before {
			t.Errorf("%s: left behind:\n%s\nwant\n%s", c.name, after, before)
		}
	}
	if links := interfaces(t, occupied); !strings.Contains(links, "eth0 bridge") {
		t.Errorf("the pod's own link was touched: %s", links)
	}
}

// The host's administrator takes things of ours away; the next pod gets by.
func TestHeals(t *testing.T) {
	w := newWorld(t)
	p := w.pod("p", PortMapping{HostPort: 8080, ContainerPort: 80})
	serve(t, p.ns, "tcp", hostport(p.ip4(), 80), "p")
	serve(t, w.outside, "tcp", hostport(outsideIP4, 80), "outside")
	before := w.ruleset()

	flush := func() { in(t, w.host, func() error { return exec.Command("nft", "flush", "ruleset").Run() }) }
	flush()
	w.pod("q")
	expect(t, "after a pod without ports", w.outside, "tcp", hostport(hostIP4, 8080), "p "+outsideIP4)
	flush()
	r := w.pod("r", PortMapping{HostPort: 8081, ContainerPort: 80})
	serve(t, r.ns, "tcp", hostport(r.ip4(), 80), "r")
	expect(t, "after a pod with ports", w.outside, "tcp", hostport(hostIP4, 8080), "p "+outsideIP4)
	expect(t, "after a pod with ports", w.outside, "tcp", hostport(hostIP4, 8081), "r "+outsideIP4)
	flush()
	if err := w.Teardown(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	if after := w.ruleset(); after != before {
		t.Errorf("after a Teardown:\n%s\nwant\n%s", after, before)
	}

	in(t, w.host, func() error {
		l, err := netlink.LinkByName(w.cfg.Bridge)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	s := w.pod("s")
	expect(t, "after the bridge was made anew", s.ns, "tcp", hostport(outsideIP4, 80), "outside "+hostIP4)
}

func TestForeignTablesStay(t *testing.T) {
	w := newWorld(t)
	const foreign = `table ip unipod {
	chain c {
		type nat hook prerouting priority -100; policy accept;
		tcp dport 8080 dnat to 203.0.113.1:80
	}
}
table inet firewalld {
	set s { type ipv4_addr; elements = { 192.0.2.77 } }
	chain c { type filter hook forward priority 10; ip saddr @s drop; }
}
`
	in(t, w.host, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(foreign)
		return cmd.Run()
	})
	before := w.ruleset()
	w.pod("p", PortMapping{HostPort: 8081, ContainerPort: 80})
	if during := w.ruleset(); !strings.HasPrefix(during, before) {
		t.Errorf("foreign tables changed:\n%s\nwant first\n%s", during, before)
	}
	if err := w.Teardown(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := w.ruleset(); after != before {
		t.Errorf("afterwards:\n%s\nwant\n%s", after, before)
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	links := interfaces(t, w.host)
	w.pod("p", PortMapping{HostPort: 8080, ContainerPort: 80})
	if err := w.Remove(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("with a pod: %v, want a failed precondition", err)
	}
	if err := w.Teardown(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := interfaces(t, w.host); after != links {
		t.Errorf("links %s, before %s", after, links)
	}
	if rules := w.ruleset(); rules != "" {
		t.Errorf("rules left:\n%s", rules)
	}
	for _, dir := range []string{w.cfg.StateDir, w.cfg.RunDir} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("in %s: %v, %v", dir, left, err)
		}
	}
}

// A process that keeps sending datagrams to a host port reaches whoever has
// the port, from one to the next.
func TestDatagramsFollowThePort(t *testing.T) {
	w := newWorld(t)
	var c net.Conn
	in(t, w.outside, func() (err error) {
		c, err = net.Dial("udp", hostport(hostIP4, 5353))
		return err
	})
	defer c.Close()
	for i := range 3 {
		id := fmt.Sprint("p", i)
		p := w.pod(id, PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: UDP})
		serve(t, p.ns, "udp", hostport(p.ip4(), 53), id)
		if got := exchange(t, c); got != id+" "+outsideIP4 {
			t.Errorf("answer %q, want that of %s", got, id)
		}
		if err := w.Teardown(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("nobody is there"))
	}
}

// Attempts to reach what only the host's own processes may.
func TestLoopbackIsGuarded(t *testing.T) {
	w := newWorld(t)
	p := w.pod("p",
		PortMapping{HostPort: 8083, ContainerPort: 80, Protocol: UDP, HostIP: netip.MustParseAddr("127.0.0.1")},
		PortMapping{HostPort: 8084, ContainerPort: 80, Protocol: UDP})
	for _, c := range []struct {
		name   string
		victim *os.File // where the server is
		server string
		from   *os.File
		via    string // the attacker's route to 127.0.0.1
		target int
		honest string // the server's address for everybody
	}{
		{"a pod sends to a service of the host on 127.0.0.1", w.host, ":7000", p.ns, p.Gateways[0].String(), 7000, hostport(p.Gateways[0], 7000)},
		{"a neighbour sends to a port published on 127.0.0.1 only", p.ns, ":80", w.outside, hostIP4, 8083, hostport(hostIP4, 8084)},
	} {
		var l net.PacketConn
		in(t, c.victim, func() (err error) {
			l, err = net.ListenPacket("udp4", c.server)
			return err
		})
		in(t, c.from, func() error { return routeLoopback(c.via) })
		for _, to := range []string{hostport("127.0.0.1", c.target), c.honest} {
			in(t, c.from, func() error {
				conn, err := net.Dial("udp", to)
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write([]byte(to))
				return err
			})
		}
		// Both take the same path, so the first to arrive tells.
		buf := make([]byte, 100)
		n, _, err := l.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); got != c.honest {
			t.Errorf("%s: it arrived, as %s", c.name, got)
		}
		l.Close()
	}
}

func TestManyAtATime(t *testing.T) {
	w := newWorld(t)
	w.pod("first")
	before := w.snapshot()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 4 {
				id := fmt.Sprintf("p%d-%d", i, j)
				ns := newNetns(t)
				port := uint16(10000 + 10*i + j)
				a, err := w.Setup(t.Context(), Request{ID: id, Netns: ns, Ports: []PortMapping{{HostPort: port, ContainerPort: 80}}})
				if err != nil {
					t.Error(err)
					return
				}
				serve(t, ns, "tcp", hostport(a.IPs[0].Addr(), 80), id)
				expect(t, id, w.outside, "tcp", hostport(hostIP4, int(port)), id+" "+outsideIP4)
				if err := w.Teardown(t.Context(), id); err != nil {
					t.Error(err)
				}
				ns.Close()
			}
		})
	}
	wg.Wait()
	if err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := w.snapshot(); after != before {
		t.Errorf("left behind:\n%s\nwant\n%s", after, before)
	}
}

func TestDescriptors(t *testing.T) {
	w := newWorld(t)
	before := 0
	for i := range 10 {
		ns := newNetns(t)
		req := Request{ID: "p", Netns: ns, Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostPort: 8080, ContainerPort: 80, Protocol: UDP}}}
		if _, err := w.Setup(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if err := w.Teardown(t.Context(), "p"); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Stats(ns); err != nil {
			t.Fatal(err)
		}
		ns.Close()
		if i == 1 {
			before = openFiles(t)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestStatsAndLoopback(t *testing.T) {
	w := newWorld(t)
	p, q := w.pod("p"), w.pod("q")
	serve(t, p.ns, "tcp", hostport(p.ip4(), 80), "p")
	expect(t, "traffic", q.ns, "tcp", hostport(p.ip4(), 80), "p "+q.ip4().String())
	stats, err := w.Stats(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	if len(stats) != 1 || stats[0].Name != podLink || stats[0].RxPackets < 3 || stats[0].TxPackets < 3 || stats[0].RxBytes < 150 {
		t.Errorf("stats %+v, want those of one conversation on eth0", stats)
	}
	bare := newNetns(t)
	if err := w.Loopback(bare); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*os.File{bare, p.ns} {
		serve(t, ns, "tcp", "127.0.0.1:81", "self")
		serve(t, ns, "tcp", "[::1]:81", "self")
		expect(t, "loopback", ns, "tcp", "127.0.0.1:81", "self 127.0.0.1")
		expect(t, "loopback", ns, "tcp", "[::1]:81", "self ::1")
	}
}

// Addresses given out before a reboot do not come again at once.
func TestCursorOutlivesReboot(t *testing.T) {
	w := newWorld(t)
	before := w.pod("p").ip4()
	w.Close()
	w.cfg.RunDir = t.TempDir() // a tmpfs, after a reboot
	w.host = newNetns(t)
	w.cfg.Netns = w.host
	w.open()
	for i := range 3 {
		if after := w.pod(fmt.Sprint("q", i)).ip4(); after.Compare(before) <= 0 || before.Next() == after {
			t.Errorf("after the reboot %s, before %s", after, before)
		}
	}
}

func TestOneProcessOnly(t *testing.T) {
	w := newWorld(t)
	if n, err := Open(t.Context(), w.cfg); !errdefs.IsFailedPrecondition(err) {
		if err == nil {
			n.Close()
		}
		t.Errorf("a second Network on the same directory: %v, want a failed precondition", err)
	}
}

func TestOverlap(t *testing.T) {
	w := newWorld(t)
	w.Close()
	w.cfg.IPv4 = netip.MustParsePrefix("192.0.0.0/16")
	w.open()
	_, err := w.Setup(t.Context(), Request{ID: "p", Netns: newNetns(t)})
	if err == nil || !strings.Contains(err.Error(), "the pod network 192.0.0.0/16 overlaps 192.0.2.0/24, which this host routes through uplink") {
		t.Errorf("error %v, want the clash of networks", err)
	}
}

func TestOneFamily(t *testing.T) {
	for name, prefix := range map[string]netip.Prefix{"IPv4": DefaultIPv4, "IPv6": DefaultIPv6} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Close()
			host, outside, local := hostIP4, outsideIP4, "127.0.0.1"
			if prefix.Addr().Is4() {
				w.cfg.IPv4 = prefix
			} else {
				w.cfg.IPv6 = prefix
				host, outside, local = hostIP6, outsideIP6, "::1"
			}
			w.open()
			p := w.pod("p", PortMapping{HostPort: 8080, ContainerPort: 80})
			if len(p.IPs) != 1 || len(p.Gateways) != 1 {
				t.Fatalf("attachment %+v, want one family", p.Attachment)
			}
			serve(t, p.ns, "tcp", hostport(p.IPs[0].Addr(), 80), "p")
			serve(t, w.outside, "tcp", hostport(outside, 80), "outside")
			expect(t, "host port", w.outside, "tcp", hostport(host, 8080), "p "+outside)
			expect(t, "localhost", w.host, "tcp", hostport(local, 8080), "p "+p.Gateways[0].String())
			expect(t, "pod to outside", p.ns, "tcp", hostport(outside, 80), "outside "+host)
			other := PortMapping{HostPort: 8081, ContainerPort: 80, HostIP: netip.MustParseAddr(secondIP6)}
			if prefix.Addr().Is6() {
				other.HostIP = netip.MustParseAddr(secondIP4)
			}
			if _, err := w.Setup(t.Context(), Request{ID: "q", Netns: newNetns(t), Ports: []PortMapping{other}}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("a host port of the other family: %v, want an invalid argument", err)
			}
		})
	}
}

// A forwarding host must go on listening to the routers it listened to; pods
// and the bridge must listen to none (CVE-2020-10749).
func TestRouterAdvertisements(t *testing.T) {
	w := newWorld(t)
	p := w.pod("p")
	for _, c := range []struct {
		ns            *os.File
		setting, want string
	}{
		{w.host, "uplink/accept_ra", "2"},
		{w.host, w.cfg.Bridge + "/accept_ra", "0"},
		{w.host, "all/forwarding", "1"},
		{p.ns, podLink + "/accept_ra", "0"},
		{p.ns, "all/forwarding", "0"},
	} {
		in(t, c.ns, func() error {
			got, err := readSysctl("net/ipv6/conf/" + c.setting)
			if err == nil && got != c.want {
				t.Errorf("%s = %s, want %s", c.setting, got, c.want)
			}
			return err
		})
	}
}

// Pods get the MTU of the way out.
func TestMTU(t *testing.T) {
	w := newWorld(t)
	in(t, w.host, func() error {
		l, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(l, 1400); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(outsideIP4)})
	})
	p := w.pod("p")
	if p.MTU != 1400 {
		t.Errorf("MTU %d, want 1400", p.MTU)
	}
	in(t, p.ns, func() error {
		l, err := netlink.LinkByName(podLink)
		if err == nil && (l.Attrs().MTU != 1400 || l.Attrs().HardwareAddr.String() != p.MAC) {
			t.Errorf("%s has MTU %d and address %s, want 1400 and %s", podLink, l.Attrs().MTU, l.Attrs().HardwareAddr, p.MAC)
		}
		return err
	})
}

// SCTP works where the kernel has it, and is a clear error where it hasn't.
func TestSCTP(t *testing.T) {
	w := newWorld(t)
	_, err := w.Setup(t.Context(), Request{ID: "p", Netns: newNetns(t), Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: SCTP}}})
	fd, serr := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if serr != nil {
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "reserving host port 8080/SCTP: this kernel has no SCTP") {
			t.Errorf("without SCTP: %v", err)
		}
		return
	}
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	if rules := w.ruleset(); !strings.Contains(rules, "sctp . 8080") {
		t.Errorf("no element for SCTP:\n%s", rules)
	}
}

// A full disk keeps a pod from starting, and no pod from ending.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	w.Close()
	w.cfg.RunDir = t.TempDir()
	if err := unix.Mount("tmpfs", w.cfg.RunDir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(w.cfg.RunDir, unix.MNT_DETACH) })
	w.open()
	ports := []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	w.pod("p", ports...)
	full, err := os.Create(filepath.Join(w.cfg.RunDir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if _, err := full.Write(make([]byte, 1<<20)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling a small disk: %v", err)
	}
	before := w.snapshot()
	_, err = w.Setup(t.Context(), Request{ID: "q", Netns: newNetns(t), Ports: []PortMapping{{HostPort: 8081, ContainerPort: 80}}})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Setup: %v, want %v", err, unix.ENOSPC)
	}
	if err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := w.snapshot(); after != before {
		t.Errorf("left behind:\n%s\nwant\n%s", after, before)
	}
	if err := w.Teardown(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// Hundreds of pods that end at once are one batch.
func TestManyEndAtOnce(t *testing.T) {
	w := newWorld(t)
	w.pod("first")
	before := w.snapshot()
	const pods = 100
	for i := range pods {
		w.pod(fmt.Sprint("p", i))
	}
	for i := range pods {
		if err := w.Teardown(t.Context(), fmt.Sprint("p", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := w.snapshot(); after != before {
		t.Errorf("left behind:\n%s\nwant\n%s", after, before)
	}
}

// A pod with a user namespace of its own owns its network namespace.
func TestUserNamespace(t *testing.T) {
	w := newWorld(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	a, err := w.Setup(t.Context(), Request{ID: "p", Netns: ns})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ns, "tcp", ":80", "p")
	for i, ip := range a.IPs {
		expect(t, "host to pod", w.Network.ns, "tcp", hostport(ip.Addr(), 80), "p "+a.Gateways[i].String())
	}
}

func interfaces(t *testing.T, ns *os.File) string {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range links {
		all = append(all, l.Attrs().Name+" "+l.Type())
	}
	return strings.Join(all, ", ")
}

// routeLoopback makes the calling thread's namespace send 127.0.0.1 away.
func routeLoopback(gateway string) error {
	if err := writeSysctl("net/ipv4/conf/all/route_localnet", "1"); err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	routes, err := h.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP.IsLoopback() {
			if err := h.RouteDel(&r); err != nil {
				return err
			}
		}
	}
	_, all, _ := net.ParseCIDR("127.0.0.0/8")
	return h.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP(gateway)})
}

// exchange sends a datagram and returns the answer to it.
func exchange(t *testing.T, c net.Conn) string {
	t.Helper()
	buf := make([]byte, 100)
	for {
		_, err := c.Write([]byte("?"))
		n := 0
		if err == nil {
			n, err = c.Read(buf)
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // an answer to what was sent while nobody was there
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
