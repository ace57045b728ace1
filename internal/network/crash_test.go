package network

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// A crash is real here: this test binary runs itself as the node process,
// which kills itself with SIGKILL at a named point.

const crashEnv = "UNIPOD_TEST_NETWORK_CRASH"

// crashPlan is what the process to be killed does. Its network namespace is
// the world's host, the pod's is descriptor 3.
type crashPlan struct {
	StateDir, RunDir string
	Point            string // where to die
	Teardown         bool   // Setup is done without dying, then Teardown
	Ports            []PortMapping
}

func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(beCNIPlugin())
	}
	if plan := os.Getenv(crashEnv); plan != "" {
		fmt.Fprintln(os.Stderr, "not reached: ", crash(plan))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func crash(encoded string) error {
	var plan crashPlan
	if err := json.Unmarshal([]byte(encoded), &plan); err != nil {
		return err
	}
	n, err := Open(context.Background(), Config{StateDir: plan.StateDir, RunDir: plan.RunDir, Bridge: "unipod0"})
	if err != nil {
		return err
	}
	armed := !plan.Teardown
	n.fault = func(point string) {
		if armed && point == plan.Point {
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	req := Request{ID: "victim", Netns: os.NewFile(3, "netns"), Ports: plan.Ports}
	if _, err := n.Setup(context.Background(), req); err != nil || !plan.Teardown {
		return err
	}
	armed = true
	if err := n.Teardown(context.Background(), "victim"); err != nil {
		return err
	}
	return n.Wait(context.Background())
}

func TestCrash(t *testing.T) {
	ports := []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: TCP}, {HostPort: 8080, ContainerPort: 80, Protocol: UDP}}
	for _, c := range []struct {
		point    string
		teardown bool
	}{
		{"recorded", false}, {"linked", false}, {"connected", false}, {"mapped", false}, {"ready", false},
		{"retired", true}, {"unmapped", true}, {"unlinked", true},
	} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld(t)
			survivor := w.pod("survivor", PortMapping{HostPort: 9090, ContainerPort: 80})
			serve(t, survivor.ns, "tcp", hostport(survivor.ip4(), 80), "survivor")
			before := w.snapshot()
			w.Close()

			victim := newNetns(t)
			plan, err := json.Marshal(crashPlan{
				StateDir: w.cfg.StateDir, RunDir: w.cfg.RunDir,
				Point: c.point, Teardown: c.teardown, Ports: ports,
			})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), crashEnv+"="+string(plan))
			cmd.ExtraFiles = []*os.File{victim}
			var out strings.Builder
			cmd.Stderr = &out
			in(t, w.host, cmd.Start)
			if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the process was to be killed at %q: %v\n%s", c.point, err, out.String())
			}

			w.open()
			if err := w.Reconcile(t.Context(), map[string]bool{"survivor": true}); err != nil {
				t.Fatal(err)
			}
			if err := w.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := w.snapshot(); after != before {
				t.Errorf("left behind or lost:\n%s\nwant\n%s", after, before)
			}
			expect(t, "survivor", w.outside, "tcp", hostport(hostIP4, 9090), "survivor "+outsideIP4)
			// Everything the victim had can be had again.
			again := w.pod("victim", ports...)
			serve(t, again.ns, "tcp", hostport(again.ip4(), 80), "again")
			expect(t, "again", w.outside, "tcp", hostport(hostIP4, 8080), "again "+outsideIP4)
		})
	}
}

// snapshot is everything of the host's namespace that pods change, as text.
func (w *world) snapshot() string {
	w.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(w.host.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close()
	var b strings.Builder
	links, err := h.LinkList()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range links {
		a := l.Attrs()
		fmt.Fprintf(&b, "link %d %s %s\n", a.Index, a.Name, a.Alias)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() { // those come up when they like
			fmt.Fprintf(&b, "route %s dev %d\n", r.Dst, r.LinkIndex)
		}
	}
	b.WriteString(w.ruleset())
	for _, r := range w.records() {
		fmt.Fprintf(&b, "record %s\n", r)
	}
	return b.String()
}

func (w *world) ruleset() string {
	w.t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		w.t.Fatalf("this test looks at the result with nft(8): %v", err)
	}
	var out []byte
	in(w.t, w.host, func() (err error) {
		out, err = exec.Command(nft, "list", "ruleset").CombinedOutput()
		return err
	})
	return string(out)
}

func (w *world) records() []string {
	entries, err := os.ReadDir(w.cfg.RunDir + "/leases")
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
