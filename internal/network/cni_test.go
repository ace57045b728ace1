package network

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The plugin of these tests is this test binary, see TestMain. It makes a real
// veth and writes down how it was called.

func beCNIPlugin() int {
	var conf struct {
		CNIVersion    string          `json:"cniVersion"`
		Log           string          `json:"log"`
		Address       string          `json:"address"`
		Fail          string          `json:"fail"` // the command to fail
		RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err == nil && len(stdin) > 0 {
		err = json.Unmarshal(stdin, &conf)
	}
	command := os.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`)
		return 0
	}
	if err == nil {
		err = noteCall(conf.Log, command, conf.Address, conf.RuntimeConfig)
	}
	if err == nil && conf.Fail == command {
		err = fmt.Errorf("told to fail")
	}
	if err == nil {
		switch command {
		case "ADD":
			err = pluginAdd(conf.Address)
			fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"vethtest"},{"name":"eth0","sandbox":%q}],`+
				`"ips":[{"address":%q,"gateway":"10.1.0.1","interface":1}],"dns":{"nameservers":["10.1.0.53"]}}`,
				conf.CNIVersion, os.Getenv("CNI_NETNS"), conf.Address)
		case "DEL":
			if l, lerr := netlink.LinkByName("vethtest"); lerr == nil {
				err = netlink.LinkDel(l)
			}
		}
	}
	if err != nil {
		fmt.Printf(`{"cniVersion":%q,"code":100,"msg":%q}`, conf.CNIVersion, err.Error())
		return 1
	}
	return 0
}

func noteCall(log, command, address string, runtime json.RawMessage) error {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	where := "gone"
	if isPinned(os.Getenv("CNI_NETNS")) {
		where = "there"
	}
	_, err = fmt.Fprintf(f, "%s %s %s netns %s args %s runtime %s\n", command, os.Getenv("CNI_CONTAINERID"), address, where, os.Getenv("CNI_ARGS"), runtime)
	return err
}

func pluginAdd(address string) error {
	f, err := os.Open(os.Getenv("CNI_NETNS"))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vethtest"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = os.Getenv("CNI_IFNAME"), netlink.NsFd(f.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	inner, err := h.LinkByName(os.Getenv("CNI_IFNAME"))
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return h.AddrAdd(inner, addr)
}

// cniWorld is a host with a CNI configuration.
type cniWorld struct {
	t    *testing.T
	host *os.File
	cfg  CNIConfig
	log  string
	*CNI
}

func newCNIWorld(t *testing.T) *cniWorld {
	t.Helper()
	dir := t.TempDir()
	w := &cniWorld{t: t, host: newNetns(t), log: filepath.Join(dir, "log")}
	w.cfg = CNIConfig{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")}, RunDir: filepath.Join(dir, "run"),
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{w.cfg.ConfDir, w.cfg.BinDirs[0]} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(self, filepath.Join(w.cfg.BinDirs[0], "testplugin")); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

func (w *cniWorld) open() {
	w.t.Helper()
	c, err := OpenCNI(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.CNI = c
	w.t.Cleanup(func() {
		c.unpinStrays(nil)
		c.Close()
	})
}

// configure writes the configuration list; extra is put into the plugin's.
func (w *cniWorld) configure(address, extra string) {
	w.t.Helper()
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"testnet","plugins":[{"type":"testplugin","log":%q,"address":%q,`+
		`"capabilities":{"portMappings":true,"bandwidth":true,"dns":true}%s}]}`, w.log, address, extra)
	if err := os.WriteFile(filepath.Join(w.cfg.ConfDir, "10-test.conflist"), []byte(conf), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// calls returns and forgets what the plugin wrote down.
func (w *cniWorld) calls() string {
	b, _ := os.ReadFile(w.log)
	os.Remove(w.log)
	return string(b)
}

// left returns what is left of pods, "" for nothing.
func (w *cniWorld) left() string {
	w.t.Helper()
	var all []string
	for _, dir := range []string{w.records.dir, w.pins(), filepath.Join(w.cfg.RunDir, "cache", "results")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			all = append(all, filepath.Join(filepath.Base(dir), e.Name()))
		}
	}
	if links := interfaces(w.t, w.host); links != "lo device" && links != "lo loopback" {
		all = append(all, links)
	}
	return strings.Join(all, " ")
}

func (w *cniWorld) setup(req Request) (a *Attachment, err error) {
	err = inNetns(w.host, func() (err error) {
		a, err = w.Setup(w.t.Context(), req)
		return err
	})
	return a, err
}

func TestCNI(t *testing.T) {
	w := newCNIWorld(t)
	if err := w.Ready(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without a configuration: %v, want unavailable", err)
	}
	w.configure("10.1.0.5/24", "")
	if err := w.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	ns := newNetns(t)
	req := Request{
		ID: "p", Netns: ns, Namespace: "default", Name: "web", UID: "1-2",
		Ports:       []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: UDP, HostIP: netip.MustParseAddr("127.0.0.1")}},
		Annotations: map[string]string{"kubernetes.io/ingress-bandwidth": "10M"},
		DNS:         DNS{Servers: []string{"10.0.0.10"}},
	}
	a, err := w.setup(req)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(fmt.Sprintln(a.IPs, a.Gateways, a.HostVeth, a.DNS.Servers, a.MTU)), "[10.1.0.5/24] [10.1.0.1] vethtest [10.1.0.53] 1500"; got != want {
		t.Errorf("attachment %s, want %s", got, want)
	}
	wantCalls := "ADD p 10.1.0.5/24 netns there args IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p;K8S_POD_UID=1-2" +
		` runtime {"bandwidth":{"ingressRate":10000000,"ingressBurst":4294967295},"dns":{"servers":["10.0.0.10"]},` +
		`"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"udp","hostIP":"127.0.0.1"}]}` + "\n"
	if got := w.calls(); got != wantCalls {
		t.Errorf("the plugin was called\n%s\nwant\n%s", got, wantCalls)
	}
	if again, err := w.setup(req); err != nil || fmt.Sprint(again) != fmt.Sprint(a) {
		t.Errorf("the second time %v, %v; want %v", again, err, a)
	}
	if got := w.calls(); got != "" {
		t.Errorf("for a pod that was added already the plugin was called %s", got)
	}

	// Another process, another configuration: the pod is checked and deleted
	// with the one it was added with.
	w.Close()
	w.open()
	w.configure("10.1.0.6/24", "")
	if err := inNetns(w.host, func() error { return w.Reconcile(t.Context(), map[string]bool{"p": true}) }); err != nil {
		t.Error(err)
	}
	if got := w.calls(); !strings.HasPrefix(got, "CHECK p 10.1.0.5/24 netns there") {
		t.Errorf("for a living pod the plugin was called %s", got)
	}
	if err := inNetns(w.host, func() error { return w.Teardown(t.Context(), "p") }); err != nil {
		t.Fatal(err)
	}
	if got := w.calls(); !strings.HasPrefix(got, "DEL p 10.1.0.5/24 netns there") {
		t.Errorf("for Teardown the plugin was called %s", got)
	}
	if left := w.left(); left != "" {
		t.Errorf("left: %s", left)
	}
	if err := w.Teardown(t.Context(), "p"); err != nil {
		t.Errorf("Teardown again: %v", err)
	}
	if err := w.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCNIFailures(t *testing.T) {
	w := newCNIWorld(t)
	w.configure("10.1.0.5/24", `,"fail":"ADD"`)
	req := Request{ID: "p", Netns: newNetns(t)}
	_, err := w.setup(req)
	if want := "CNI network testnet: adding pod p: plugin type=\"testplugin\" failed (add): told to fail"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if got := w.calls(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "\nDEL p ") {
		t.Errorf("the plugin was called %s, want ADD and DEL", got)
	}
	if left := w.left(); left != "" {
		t.Errorf("left: %s", left)
	}

	// The result lies: no such address, no eth0.
	w.configure("not an address", "")
	if _, err := w.setup(req); err == nil {
		t.Error("an address that is none was believed")
	}
	if left := w.left(); left != "" {
		t.Errorf("left: %s", left)
	}

	bad := req
	bad.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "1"}
	if _, err := w.setup(bad); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bandwidth of 1: %v, want an invalid argument", err)
	}

	// A DEL that fails is tried again, and what a crash left is deleted.
	w.configure("10.1.0.5/24", `,"fail":"DEL"`)
	if _, err := w.setup(req); err != nil {
		t.Fatal(err)
	}
	if err := inNetns(w.host, func() error { return w.Teardown(t.Context(), "p") }); err == nil {
		t.Error("a failing DEL went unnoticed")
	}
	r, err := w.record("p")
	if err != nil {
		t.Fatalf("the record is gone: %v", err)
	}
	r.Network.Plugins[0] = json.RawMessage(strings.Replace(string(r.Network.Plugins[0]), `"fail":"DEL"`, `"fail":""`, 1))
	r.Phase = making
	if err := w.records.put("p", r); err != nil {
		t.Fatal(err)
	}
	w.Close()
	w.open()
	if err := inNetns(w.host, func() error { return w.Reconcile(t.Context(), map[string]bool{}) }); err != nil {
		t.Error(err)
	}
	if left := w.left(); left != "" {
		t.Errorf("left: %s", left)
	}
}
