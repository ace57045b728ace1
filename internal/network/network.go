package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// The networks used when Config names none.
var (
	DefaultIPv4 = netip.MustParsePrefix("10.66.0.0/16")
	DefaultIPv6 = netip.MustParsePrefix("fd75:6e69:706f:64::/64")
)

var (
	// ErrNoFreeIP is wrapped by Setup's error when the pod network has no
	// address left.
	ErrNoFreeIP = fmt.Errorf("no free IP address: %w", errdefs.ErrResourceExhausted)
	// ErrPortInUse is wrapped by Setup's error when a host port is taken, by
	// another pod or by a process of the host.
	ErrPortInUse = fmt.Errorf("host port in use: %w", errdefs.ErrFailedPrecondition)
)

// Config says what a Network owns. The zero value of every field but the
// directories has a meaning.
type Config struct {
	StateDir string // survives reboots
	RunDir   string // must not: empty after a reboot, best a tmpfs

	Bridge string       // "" = "unipod0"
	Table  string       // nftables table, "" = "unipod"
	IPv4   netip.Prefix // both zero = DefaultIPv4 and DefaultIPv6;
	IPv6   netip.Prefix // one zero = pods have no address of that family
	MTU    int          // bytes; 0 = that of the interface with the default route

	// Netns is the network namespace the bridge lives in, nil for the
	// process's own. It must stay open as long as the Network.
	Netns *os.File

	Clock  clock.Clock  // nil = the real one
	Logger *slog.Logger // nil = slog.Default()
}

// Attachment is what a pod got. It is recorded, and safe to be kept as JSON.
type Attachment struct {
	IPs           []netip.Prefix `json:"ips"`      // IPv4 first
	Gateways      []netip.Addr   `json:"gateways"` // one per IP
	MAC           string         `json:"mac"`
	HostVeth      string         `json:"hostVeth"`
	HostVethIndex int            `json:"hostVethIndex"`
	MTU           int            `json:"mtu"`          // bytes
	DNS           DNS            `json:"dns,omitzero"` // of a CNI configuration, else empty
}

func (a *Attachment) mac() net.HardwareAddr {
	mac, _ := net.ParseMAC(a.MAC) // our own String()
	return mac
}

// complete fills in defaults and refuses what can't work.
func (cfg *Config) complete() error {
	if cfg.StateDir == "" || cfg.RunDir == "" {
		return fmt.Errorf("pod network: StateDir and RunDir must be given: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.Bridge == "" {
		cfg.Bridge = "unipod0"
	}
	if cfg.Table == "" {
		cfg.Table = "unipod"
	}
	if !cfg.IPv4.IsValid() && !cfg.IPv6.IsValid() {
		cfg.IPv4, cfg.IPv6 = DefaultIPv4, DefaultIPv6
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	switch {
	case len(cfg.Bridge) >= unix.IFNAMSIZ:
		return fmt.Errorf("bridge name %q is longer than %d bytes: %w", cfg.Bridge, unix.IFNAMSIZ-1, errdefs.ErrInvalidArgument)
	case cfg.IPv4.IsValid() && !cfg.IPv4.Addr().Is4():
		return fmt.Errorf("pod network %s is not an IPv4 network: %w", cfg.IPv4, errdefs.ErrInvalidArgument)
	case cfg.IPv6.IsValid() && (!cfg.IPv6.Addr().Is6() || cfg.IPv6.Addr().Is4In6()):
		return fmt.Errorf("pod network %s is not an IPv6 network: %w", cfg.IPv6, errdefs.ErrInvalidArgument)
	case cfg.MTU != 0 && (cfg.MTU < 1280 || cfg.MTU > 65535):
		return fmt.Errorf("MTU %d is not between 1280 and 65535: %w", cfg.MTU, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Network is the in-process pod network. Its methods may be called
// concurrently.
type Network struct {
	podside
	cfg    Config
	log    *slog.Logger
	ns     *os.File // the host's network namespace
	ownsNS bool     // ns is the process's own, opened by Open
	lock   *os.File // exclusive use of RunDir

	host   *conn           // for what every Setup does
	handle *netlink.Handle // for what is done once, or rarely

	leases store
	ipam   *ipam
	infra  infra
	reaper reaper
	turns  turns

	closing sync.Once

	mu   sync.Mutex
	pods map[string]*record // every pod with a record

	// fault, set by tests only, is called at the named points of Setup and
	// Teardown between which a crash must be harmless.
	fault func(point string)
}

var _ Plugin = (*Network)(nil)

// Open reads the leases and makes ready for Setup. It changes nothing in the
// kernel: the bridge and the table are made by the first Setup. Close releases
// what it holds.
func Open(_ context.Context, cfg Config) (_ *Network, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, log: cfg.Logger, ns: cfg.Netns, leases: store{filepath.Join(cfg.RunDir, "leases")}}
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	for _, dir := range []string{cfg.StateDir, cfg.RunDir, n.leases.dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making a directory of the pod network: %w", err)
		}
	}
	if n.lock, err = lockDir(cfg.RunDir); err != nil {
		return nil, err
	}
	if n.ns == nil {
		if n.ns, err = os.Open("/proc/self/ns/net"); err != nil {
			return nil, fmt.Errorf("opening the host's network namespace: %w", err)
		}
		n.ownsNS = true
	}
	if n.host, err = dialIn(n.ns); err != nil {
		return nil, err
	}
	n.handle, err = netlink.NewHandleAt(netns.NsHandle(n.ns.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening netlink sockets: %w", err)
	}
	if n.ipam, err = openIPAM(cfg.StateDir, n.log, cfg.IPv4, cfg.IPv6); err != nil {
		return nil, err
	}
	if n.pods, err = n.leases.records(); err != nil {
		return nil, err
	}
	for _, r := range n.pods {
		n.ipam.claim(r.Attachment.IPs)
		r.mapped = r.Phase == ready
		r.portsFree = !r.mapped
	}
	n.reaper.start(n)
	for _, r := range n.pods {
		if r.Phase == ending {
			n.reaper.add(r, n.cfg.Clock.Now())
		}
	}
	return n, nil
}

// Ready is always nil: what a pod needs is made when the first one comes.
func (n *Network) Ready(context.Context) error { return nil }

// Prepare makes what all pods share before the first comes.
func (n *Network) Prepare(ctx context.Context) error {
	_, _, err := n.ensure(ctx)
	return err
}

// Bridge is the name of the link that pods are behind.
func (n *Network) Bridge() string { return n.cfg.Bridge }

// Gateways are this machine's addresses on the bridge, one of each family that
// pods have.
func (n *Network) Gateways() (all []netip.Addr) {
	for _, gw := range n.ipam.gateways() {
		all = append(all, gw.Addr())
	}
	return all
}

// Close waits for what Teardown left to be done behind it and releases the
// Network's own resources. Pods keep their network.
func (n *Network) Close() error {
	n.closing.Do(n.release)
	return nil
}

// release undoes Open, however far it came.
func (n *Network) release() {
	n.reaper.stop()
	for _, r := range n.pods {
		closeAll(r.reserved)
		r.letGo()
	}
	if n.ipam != nil {
		n.ipam.close()
	}
	n.infra.close()
	if n.handle != nil {
		n.handle.Close()
	}
	if n.host != nil {
		n.host.Close()
	}
	if n.ownsNS {
		n.ns.Close()
	}
	if n.lock != nil {
		n.lock.Close()
	}
}

// lockDir makes sure that no other process works on the same leases. The lock
// ends with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("pod network: another process is using %s: %w", dir, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

// turns makes calls for the same pod take turns.
type turns struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the turn ends
}

// take waits for the pod's turn and returns the function that ends it.
func (t *turns) take(ctx context.Context, id string) (func(), error) {
	for {
		t.mu.Lock()
		busy, ok := t.held[id]
		if !ok {
			if t.held == nil {
				t.held = make(map[string]chan struct{})
			}
			mine := make(chan struct{})
			t.held[id] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.held, id)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
