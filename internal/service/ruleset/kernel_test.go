package ruleset

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/service/plan"
)

// host is a network namespace with pods behind a bridge, as a node is.
type host struct {
	t     testing.TB
	ns    *os.File
	table *Table
	n     int
}

const bridge = "br0"

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	h := &host{t: t, ns: newNS(t)}
	within(t, h.ns, func() {
		must(t, up("lo"))
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}))
		br, err := netlink.LinkByName(bridge)
		must(t, err)
		for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			must(t, os.WriteFile("/proc/sys/"+s, []byte("1"), 0))
		}
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+bridge+"/accept_dad", []byte("0"), 0))
		must(t, up(bridge))
		for _, a := range []string{"10.66.0.1/16", "fd74::1/64"} {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			addr.Flags = unix.IFA_F_NODAD
			must(t, netlink.AddrAdd(br, addr))
		}
		// The way out, without which nothing of the host's leaves.
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "out1"}))
		must(t, up("out1"))
		must(t, up("out0"))
		out, err := netlink.LinkByName("out0")
		must(t, err)
		for _, a := range []string{"192.0.2.1/24", "fd99::1/64"} {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			addr.Flags = unix.IFA_F_NODAD
			must(t, netlink.AddrAdd(out, addr))
		}
		for _, gw := range []string{"192.0.2.254", "fd99::254"} {
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Gw: net.ParseIP(gw)}))
		}
		// Pods are on one bridge: their answers must come back by the host.
		nft(t, func(c *nftables.Conn) {
			table := c.AddTable(&nftables.Table{Name: "pods", Family: nftables.TableFamilyINet})
			post := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
			(&Table{conn: c, nft: table}).rule(post, "", redirected(), []expr.Any{&expr.Masq{}})
		})
	})
	h.table = h.open()
	return h
}

func (h *host) open() *Table {
	h.t.Helper()
	table, err := Open(Config{
		Table: "services", From: bridge, Netns: h.ns, Log: slog.New(slog.DiscardHandler),
		Networks: []netip.Prefix{netip.MustParsePrefix("10.67.0.0/16"), netip.MustParsePrefix("fd75::/112")},
	})
	must(h.t, err)
	h.t.Cleanup(func() { table.Close() })
	return table
}

// bridgeFilters runs a test with and without br_netfilter, by which the bridge
// shows its packets to nftables: hosts have either.
func bridgeFilters(t *testing.T, test func(*testing.T, *host)) {
	for name, on := range map[string]string{"br_netfilter": "1", "none": "0"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			within(t, h.ns, func() {
				for _, s := range []string{"iptables", "ip6tables"} {
					err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+s, []byte(on), 0)
					if err != nil && (on == "1" || !errors.Is(err, os.ErrNotExist)) {
						t.Skip(err)
					}
				}
			})
			test(t, h)
		})
	}
}

// pod makes one; its addresses end with its number.
func (h *host) pod() *pod {
	h.t.Helper()
	h.n++
	p := &pod{t: h.t, ns: newNS(h.t), ip4: fmt.Sprintf("10.66.0.%d", h.n+1), ip6: fmt.Sprintf("fd74::%d", h.n+1)}
	name := fmt.Sprintf("veth%d", h.n)
	within(h.t, h.ns, func() {
		br, err := netlink.LinkByName(bridge)
		must(h.t, err)
		must(h.t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns.Fd()),
		}))
		veth, err := netlink.LinkByName(name)
		must(h.t, err)
		must(h.t, netlink.LinkSetHairpin(veth, true))
		must(h.t, up(name))
	})
	within(h.t, p.ns, func() {
		must(h.t, up("lo"))
		must(h.t, up("eth0"))
		eth, err := netlink.LinkByName("eth0")
		must(h.t, err)
		for _, a := range []string{p.ip4 + "/16", p.ip6 + "/64"} {
			addr, err := netlink.ParseAddr(a)
			must(h.t, err)
			addr.Flags = unix.IFA_F_NODAD
			must(h.t, netlink.AddrAdd(eth, addr))
		}
		for _, gw := range []string{"10.66.0.1", "fd74::1"} {
			must(h.t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(gw)}))
		}
	})
	return p
}

type pod struct {
	t        testing.TB
	ns       *os.File
	ip4, ip6 string
}

// serve answers every connection and datagram with the pod's address.
func (p *pod) serve() *pod {
	p.t.Helper()
	within(p.t, p.ns, func() {
		l, err := net.Listen("tcp", ":8080")
		must(p.t, err)
		u, err := net.ListenPacket("udp", ":8080")
		must(p.t, err)
		p.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", p.ip4, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				u.WriteTo([]byte(p.ip4), from)
			}
		}()
	})
	return p
}

// ask connects from a namespace and returns who answered, and whom it saw.
func ask(t testing.TB, ns *os.File, to string) (who, saw string, err error) {
	t.Helper()
	within(t, ns, func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", to, 5*time.Second); err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		var b []byte
		b, err = io.ReadAll(c)
		who, saw, _ = strings.Cut(string(b), " ")
	})
	return who, saw, err
}

// service is a table of one port.
func service(vip string, affinity time.Duration, backends ...*pod) []plan.Port {
	at := netip.MustParseAddrPort(vip)
	all := []plan.Port{}
	for _, proto := range []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP} {
		p := plan.Port{Key: plan.Key{Addr: at.Addr(), Protocol: proto, Port: at.Port()}, Name: "test", Affinity: affinity}
		for _, b := range backends {
			ip := b.ip4
			if at.Addr().Is6() {
				ip = b.ip6
			}
			p.Backends = append(p.Backends, netip.AddrPortFrom(netip.MustParseAddr(ip), 8080))
		}
		all = append(all, p)
	}
	return all
}

// TestSpread: every backend gets connections, from a pod and from the host, by
// both families.
func TestSpread(t *testing.T) { bridgeFilters(t, testSpread) }

func testSpread(t *testing.T, h *host) {
	a, b, c, client := h.pod().serve(), h.pod().serve(), h.pod().serve(), h.pod()
	must(t, h.table.Replace(map[string][]plan.Port{"web": append(service("10.67.0.9:80", 0, a, b, c), service("[fd75::9]:80", 0, a, b, c)...)}))
	for _, vip := range []string{"10.67.0.9:80", "[fd75::9]:80"} {
		for name, from := range map[string]*os.File{"a pod": client.ns, "the host": h.ns} {
			got := map[string]int{}
			for range 90 {
				who, _, err := ask(t, from, vip)
				must(t, err)
				got[who]++
			}
			// That one of three gets none of 90 happens once in 10^15.
			if len(got) != 3 {
				t.Errorf("%s to %s: %v", name, vip, got)
			}
		}
	}
}

// TestHairpin: a pod that is its own Service's backend reaches itself.
func TestHairpin(t *testing.T) { bridgeFilters(t, testHairpin) }

func testHairpin(t *testing.T, h *host) {
	a := h.pod().serve()
	must(t, h.table.Replace(map[string][]plan.Port{"web": append(service("10.67.0.9:80", 0, a), service("[fd75::9]:80", 0, a)...)}))
	for _, vip := range []string{"10.67.0.9:80", "[fd75::9]:80"} {
		who, saw, err := ask(t, a.ns, vip)
		if err != nil || who != a.ip4 || saw == "" {
			t.Errorf("%s: %q %q %v", vip, who, saw, err)
		}
	}
}

// TestRefused: without a backend, and at a port no Service has, a connection
// is refused at once; at an address no Service has it gets no answer; with
// backends elsewhere only neither.
func TestRefused(t *testing.T) {
	h := newHost(t)
	a, client := h.pod().serve(), h.pod()
	must(t, h.table.Replace(map[string][]plan.Port{"web": service("10.67.0.9:80", 0, a), "none": append(service("10.67.0.10:80", 0), service("[fd75::a]:80", 0)...)}))
	for _, to := range []string{"10.67.0.10:80", "10.67.0.9:81", "[fd75::a]:80"} {
		for name, from := range map[string]*os.File{"a pod": client.ns, "the host": h.ns} {
			if _, _, err := ask(t, from, to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s to %s: %v", name, to, err)
			}
			within(t, from, func() {
				c, err := net.Dial("udp", to)
				must(t, err)
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				c.Write([]byte("?"))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s to udp %s: %v", name, to, err)
				}
			})
		}
	}
	drop := service("10.67.0.11:80", 0)
	for i := range drop {
		drop[i].Drop = true
	}
	must(t, h.table.Sync(map[string][]plan.Port{"far": drop}))
	for _, to := range []string{"10.67.0.11:80", "10.67.0.200:80"} {
		within(t, client.ns, func() {
			if c, err := net.DialTimeout("tcp", to, 200*time.Millisecond); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v %v", to, c, err)
			}
		})
	}
	// One comes, one goes.
	must(t, h.table.Sync(map[string][]plan.Port{"web": nil, "none": service("10.67.0.10:80", 0, a)}))
	if who, _, err := ask(t, client.ns, "10.67.0.10:80"); err != nil || who != a.ip4 {
		t.Errorf("%q %v", who, err)
	}
}

// TestAffinity: a client stays with its backend, for as long as the Service
// has it; and a restart of the node forgets nothing.
func TestAffinity(t *testing.T) {
	for _, vip := range []string{"10.67.0.9:80", "[fd75::9]:80"} {
		h := newHost(t)
		pods := []*pod{h.pod().serve(), h.pod().serve(), h.pod().serve()}
		client := h.pod()
		must(t, h.table.Replace(map[string][]plan.Port{"web": service(vip, time.Hour, pods...)}))
		same := func() string {
			t.Helper()
			first := ""
			for range 20 {
				who, _, err := ask(t, client.ns, vip)
				must(t, err)
				if first == "" {
					first = who
				}
				if who != first {
					t.Fatalf("%s: went to %s, then to %s", vip, first, who)
				}
			}
			return first
		}
		was := same()
		must(t, h.table.Close())
		h.table = h.open()
		must(t, h.table.Replace(map[string][]plan.Port{"web": service(vip, time.Hour, pods...)}))
		if now := same(); now != was {
			t.Errorf("%s: %s before, %s after a restart", vip, was, now)
		}
		left := slices.DeleteFunc(slices.Clone(pods), func(p *pod) bool { return p.ip4 == was })
		must(t, h.table.Sync(map[string][]plan.Port{"web": service(vip, time.Hour, left...)}))
		if now := same(); now == was {
			t.Errorf("%s: stays with %s, which is gone", vip, was)
		}
	}
	h := newHost(t)
	a, b, client := h.pod().serve(), h.pod().serve(), h.pod()
	must(t, h.table.Replace(map[string][]plan.Port{"web": service("10.67.0.9:80", time.Second, a, b)}))
	first, _, err := ask(t, client.ns, "10.67.0.9:80")
	must(t, err)
	for { // it ends, and then the choice is free
		time.Sleep(1100 * time.Millisecond)
		now, _, err := ask(t, client.ns, "10.67.0.9:80")
		must(t, err)
		if now != first {
			break
		}
	}
}

// TestDatagrams: a client that keeps its socket gets another backend when its
// own is gone, and one that was refused gets the first that comes.
func TestDatagrams(t *testing.T) {
	h := newHost(t)
	a, b, client := h.pod().serve(), h.pod().serve(), h.pod()
	must(t, h.table.Replace(map[string][]plan.Port{"dns": service("10.67.0.9:53", 0)}))
	var c net.Conn
	within(t, client.ns, func() {
		var err error
		c, err = net.Dial("udp", "10.67.0.9:53")
		must(t, err)
	})
	defer c.Close()
	query := func() string {
		t.Helper()
		buf := make([]byte, 100)
		for range 50 {
			c.Write([]byte("?"))
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := c.Read(buf); err == nil {
				return string(buf[:n])
			}
		}
		return ""
	}
	c.Write([]byte("?"))
	for _, p := range []*pod{a, b, a} {
		must(t, h.table.Sync(map[string][]plan.Port{"dns": service("10.67.0.9:53", 0, p)}))
		for i := 0; ; i++ { // an answer may have been under way
			if got := query(); got == p.ip4 {
				break
			} else if i > 5 {
				t.Fatalf("%q answers, not %s", got, p.ip4)
			}
		}
	}
}

// TestAdopt: what is right stays as it is, what isn't is put right, and a
// table of another version is replaced.
func TestAdopt(t *testing.T) {
	h := newHost(t)
	a, b := h.pod(), h.pod()
	all := map[string][]plan.Port{"web": service("10.67.0.9:80", 0, a, b), "db": service("10.67.0.10:80", time.Hour, a), "old": service("10.67.0.11:80", 0, b)}
	must(t, h.table.Replace(all))
	within(t, h.ns, func() {
		nft(t, func(c *nftables.Conn) { c.AddChain(&nftables.Chain{Name: "witness", Table: h.table.nft}) })
	})
	must(t, h.table.Close())
	h.table = h.open()
	delete(all, "old")
	all["new"] = service("10.67.0.12:80", 0, a)
	must(t, h.table.Replace(all))
	h.check()
	if names, err := h.table.ours(); err != nil || !names["witness"] {
		t.Errorf("the table was made anew: %v %v", names, err)
	}
	h.table.Close()
	h.table = h.open()
	h.table.mark = "layout-other"
	must(t, h.table.Replace(all))
	if names, err := h.table.ours(); err != nil || names["witness"] {
		t.Errorf("the table was not made anew: %v %v", names, err)
	}
	h.check()
}

// TestTakenAway: somebody flushes the ruleset, or changes what is ours.
func TestTakenAway(t *testing.T) {
	h := newHost(t)
	a, b := h.pod(), h.pod()
	must(t, h.table.Replace(map[string][]plan.Port{"web": service("10.67.0.9:80", 0, a, b)}))
	flush := func() { within(t, h.ns, func() { nft(t, func(c *nftables.Conn) { c.FlushRuleset() }) }) }
	flush()
	must(t, h.table.Check())
	h.check()
	flush()
	must(t, h.table.Sync(map[string][]plan.Port{"web": service("10.67.0.9:80", 0, b)}))
	h.check()
	within(t, h.ns, func() {
		nft(t, func(c *nftables.Conn) { c.FlushSet(h.table.sets["backends4"]) })
	})
	must(t, h.table.Sync(map[string][]plan.Port{"web": service("10.67.0.9:80", 0, a)}))
	h.check()
	must(t, h.table.Remove())
	must(t, h.table.Remove())
	if _, err := h.table.ours(); !errors.Is(err, errNotOurs) {
		t.Errorf("removed: %v", err)
	}
}

// TestTwoClaims: two Services say one address is theirs. The first by name has
// it, and others are served all the same.
func TestTwoClaims(t *testing.T) {
	h := newHost(t)
	a, b, client := h.pod().serve(), h.pod().serve(), h.pod()
	must(t, h.table.Replace(map[string][]plan.Port{"a": service("10.67.0.9:80", 0, a)}))
	must(t, h.table.Sync(map[string][]plan.Port{"b": service("10.67.0.9:80", 0, b), "c": service("10.67.0.10:80", 0, b)}))
	for vip, want := range map[string]string{"10.67.0.9:80": a.ip4, "10.67.0.10:80": b.ip4} {
		if who, _, err := ask(t, client.ns, vip); err != nil || who != want {
			t.Errorf("%s: %q %v", vip, who, err)
		}
	}
}

// TestRandomChanges: however it came to be, the kernel has what the Services
// say and nothing else.
func TestRandomChanges(t *testing.T) {
	h := newHost(t)
	pods := make([]*pod, 6)
	for i := range pods { // addresses only
		pods[i] = &pod{ip4: fmt.Sprintf("10.66.0.%d", i+2), ip6: fmt.Sprintf("fd74::%d", i+2)}
	}
	must(t, h.table.Replace(nil))
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		changed := map[string][]plan.Port{}
		for range 1 + r.IntN(3) {
			n := r.IntN(8)
			name := fmt.Sprint("s", n)
			if r.IntN(4) == 0 {
				changed[name] = nil
				continue
			}
			some := slices.DeleteFunc(slices.Clone(pods), func(*pod) bool { return r.IntN(2) == 0 })
			keep := time.Duration(r.IntN(2)) * time.Minute
			changed[name] = append(service(fmt.Sprintf("10.67.0.%d:80", n+1), keep, some...), service(fmt.Sprintf("[fd75::%d]:80", n+1), keep, some...)...)
		}
		must(t, h.table.Sync(changed))
		h.check()
		if t.Failed() {
			return
		}
	}
}

// check compares the kernel with what the table thinks it has.
func (h *host) check() {
	h.t.Helper()
	want := elements{}
	for _, ports := range h.table.services {
		maps.Copy(want, elementsOf(ports))
		for _, b := range backendsOf(ports) {
			want[hairpin(b)] = ""
		}
	}
	have := elements{}
	for name, set := range h.table.sets {
		if set.Dynamic {
			continue
		}
		all, err := h.table.conn.GetSetElements(set)
		must(h.t, err)
		for _, e := range all {
			value := string(e.Val)
			if set.DataType.Name == nftables.TypeVerdict.Name {
				value, err = chainIn(e.Val)
				must(h.t, err)
			}
			have[id{name, string(e.Key)}] = value
		}
	}
	if gone, come := difference(have, want); len(gone)+len(come) > 0 {
		h.t.Errorf("the kernel has too much: %q\nand lacks: %q", gone, come)
	}
}

func newNS(t testing.TB) *os.File {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	must(t, err)
	defer here.Close()
	fresh, err := netns.New()
	must(t, err)
	must(t, netns.Set(here))
	f := os.NewFile(uintptr(fresh), "netns")
	t.Cleanup(func() { f.Close() })
	return f
}

// within runs f in a network namespace. Sockets that it opens stay there.
func within(t testing.TB, ns *os.File, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	must(t, err)
	defer here.Close()
	must(t, netns.Set(netns.NsHandle(ns.Fd())))
	defer func() { must(t, netns.Set(here)) }()
	f()
}

func nft(t testing.TB, f func(*nftables.Conn)) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	f(c)
	must(t, c.Flush())
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestAnyLink: where nobody knows what pods are behind, they reach Services by
// whatever link; where it is known, what comes by another doesn't.
func TestAnyLink(t *testing.T) {
	for from, reached := range map[string]bool{"": true, "other0": false} {
		h := newHost(t)
		h.table.cfg.From = from
		a, client := h.pod().serve(), h.pod()
		must(t, h.table.Replace(map[string][]plan.Port{"web": service("10.67.0.9:80", 0, a)}))
		if who, _, err := ask(t, client.ns, "10.67.0.9:80"); (err == nil && who == a.ip4) != reached {
			t.Errorf("from %q: %q %v", from, who, err)
		}
		if who, _, err := ask(t, h.ns, "10.67.0.9:80"); err != nil || who != a.ip4 {
			t.Errorf("the host: %q %v", who, err)
		}
	}
}
