// Package node assembles the lower half of the house: images, cgroups,
// network and runtime on one machine's directories, and the sockets by which
// other processes reach them.
//
// There is one node per root directory. [Open] takes the directory's lock and
// runs the node in this process; [Connect] reaches the one that runs. Both
// give the same [Node], so that what stands above needn't know which it has.
//
// Floor: 7. It imports everything below it.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/criserver"
	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/network"
	"unipod.dev/unipod/internal/runtime"
)

// The directories of a node that names none.
const (
	DefaultRoot = "/var/lib/unipod"
	DefaultRun  = "/run/unipod"
)

// SocketName is the CRI socket's name below Run.
const SocketName = "cri.sock"

// Config says where a node lives and what it may use; empty fields mean the
// defaults.
type Config struct {
	Root string // survives a reboot
	Run  string // a tmpfs; what a reboot ends

	// RuntimeEndpoint is the CRI socket of another runtime that runs the pods
	// instead of ours, such as unix:///run/containerd/containerd.sock. Of the
	// rest only Root, Run and Log matter then.
	RuntimeEndpoint string

	Bridge     string
	Table      string // of nftables
	IPv4, IPv6 string // the pods' networks, in CIDR notation

	// CNI makes the pods' network the plugins' of this configuration
	// directory, such as /etc/cni/net.d, instead of our own.
	CNI string
	// CNIBin are the directories with the plugins, default /opt/cni/bin.
	CNIBin []string

	CgroupDriver string // cgroupfs or systemd
	CgroupParent string // of pods that name none

	StreamAddr string // of exec, attach and port-forward; default 127.0.0.1:0
	// StreamCert and StreamKey are PEM files; with them these are over TLS.
	StreamCert, StreamKey string

	Images image.Config // Root and Run are set from above

	Log *slog.Logger
}

func (c *Config) complete() {
	if c.Root == "" {
		c.Root = DefaultRoot
	}
	if c.Run == "" {
		c.Run = DefaultRun
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// LockedError says that another process runs the node of a root directory.
type LockedError struct {
	Root   string
	Holder string // its PID and command line, "" when unknown
}

func (e *LockedError) Error() string {
	msg := fmt.Sprintf("a unipod node already runs on %s", e.Root)
	if e.Holder != "" {
		msg += " (" + e.Holder + ")"
	}
	return msg
}

// Unwrap makes it an errdefs.ErrAlreadyExists.
func (e *LockedError) Unwrap() error { return errdefs.ErrAlreadyExists }

// Node is a node, in this process or another.
type Node struct {
	cfg    Config
	svc    cri.Service
	images ImageAdmin
	close  []func() error // in the order of opening

	local *local
}

// local is what a node in this process has beside.
type local struct {
	runtime *runtime.Runtime
	network network.Plugin
	store   *image.Store
	cri     *criserver.Server
	admin   *adminServer
}

// CRI is the node's runtime.
func (n *Node) CRI() cri.Service { return n.svc }

// Streams serves the addresses that the runtime hands out for exec, attach and
// port-forward; nil when it is in another process, which serves them itself.
func (n *Node) Streams() http.Handler {
	if n.local == nil {
		return nil
	}
	return n.local.runtime.Streams()
}

// PodSide is how pods reach this machine: the link they are behind, the
// machine's addresses on it, and how to make it before the first pod comes.
// All are empty where the network isn't ours.
func (n *Node) PodSide() (link string, gateways []netip.Addr, prepare func(context.Context) error) {
	if n.local == nil {
		return "", nil, nil
	}
	own, ok := n.local.network.(*network.Network)
	if !ok {
		return "", nil, nil
	}
	return own.Bridge(), own.Gateways(), own.Prepare
}

// Images is the administration of the node's images.
func (n *Node) Images() ImageAdmin { return n.images }

// HandleBackup says how a backup of the node is written, for other processes
// that ask for one ([Node.Backup]). The node must be of this process.
func (n *Node) HandleBackup(write func(context.Context, io.Writer) error) {
	if n.local != nil {
		n.local.admin.backup.Store(&write)
	}
}

// Backup asks a node of another process for a backup.
func (n *Node) Backup(ctx context.Context, w io.Writer) error {
	r, ok := n.images.(*remoteImages)
	if !ok {
		return fmt.Errorf("only the running node can be asked for a backup: %w", errdefs.ErrFailedPrecondition)
	}
	return r.stream(ctx, w, "backup", nil)
}

// InProcess tells whether the node runs in this process.
func (n *Node) InProcess() bool { return n.local != nil }

// Run is the node's directory on tmpfs.
func (n *Node) Run() string { return n.cfg.Run }

// Open runs the node of cfg.Root in this process: it adopts the pods that
// run, undoes what a killed node left half made and answers on the sockets in
// cfg.Run. When another process runs it already, the error is a *LockedError.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	cfg.complete()
	if cfg.RuntimeEndpoint != "" {
		return openForeign(ctx, cfg)
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, local: &local{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.closeAll())
		}
	}()
	for _, dir := range []string{cfg.Root, cfg.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the node's directory: %w", err)
		}
	}
	unlock, err := lock(cfg.Root)
	if err != nil {
		return nil, err
	}
	n.close = append(n.close, unlock)
	if err := voidAfterReboot(cfg.Run); err != nil {
		return nil, err
	}

	images := cfg.Images
	images.Root, images.Run, images.Logger = filepath.Join(cfg.Root, "images"), filepath.Join(cfg.Run, "images"), cfg.Log
	if n.local.store, err = image.Open(ctx, images); err != nil {
		return nil, err
	}
	n.close = append(n.close, n.local.store.Close)
	if n.local.network, err = openNetwork(ctx, cfg); err != nil {
		return nil, err
	}
	n.close = append(n.close, n.local.network.Close)
	groups, err := cgroup.Open(cgroup.Config{Driver: cfg.CgroupDriver, Root: cfg.CgroupParent})
	if err != nil {
		return nil, err
	}
	n.close = append(n.close, groups.Close)
	n.local.runtime, err = runtime.Open(ctx, runtime.Config{
		Root: cfg.Root, Run: cfg.Run,
		Images: n.local.store, Network: n.local.network, Cgroups: groups,
		StreamAddr: cfg.StreamAddr, StreamCert: cfg.StreamCert, StreamKey: cfg.StreamKey,
		SeccompProfileRoot: filepath.Join(cfg.Root, "seccomp"), Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	n.close = append(n.close, n.local.runtime.Close)
	n.svc, n.images = n.local.runtime, localImages{n.local.store}
	if n.local.admin, err = serveAdmin(filepath.Join(cfg.Run, adminSocketName), n.images); err != nil {
		return nil, err
	}
	n.close = append(n.close, n.local.admin.close)
	if n.local.cri, err = criserver.Listen(filepath.Join(cfg.Run, SocketName), n.local.runtime); err != nil {
		return nil, err
	}
	n.close = append(n.close, func() error { n.local.cri.Close(); return nil })
	return n, nil
}

func openNetwork(ctx context.Context, cfg Config) (network.Plugin, error) {
	if cfg.CNI != "" {
		return network.OpenCNI(network.CNIConfig{
			RunDir: filepath.Join(cfg.Run, "cni"), ConfDir: cfg.CNI, BinDirs: cfg.CNIBin, Logger: cfg.Log,
		})
	}
	nc := network.Config{
		StateDir: filepath.Join(cfg.Root, "network"), RunDir: filepath.Join(cfg.Run, "network"),
		Bridge: cfg.Bridge, Table: cfg.Table, Logger: cfg.Log,
	}
	for _, p := range []struct {
		flag string
		text string
		into *netip.Prefix
	}{{"IPv4", cfg.IPv4, &nc.IPv4}, {"IPv6", cfg.IPv6, &nc.IPv6}} {
		if p.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(p.text)
		if err != nil {
			return nil, fmt.Errorf("the pods' %s network %q: %w: %w", p.flag, p.text, err, errdefs.ErrInvalidArgument)
		}
		*p.into = prefix
	}
	return network.Open(ctx, nc)
}

// Connect reaches the node that another process runs. When none answers, the
// error is errdefs.ErrUnavailable.
func Connect(ctx context.Context, cfg Config) (*Node, error) {
	cfg.complete()
	if cfg.RuntimeEndpoint != "" {
		return connectForeign(ctx, cfg)
	}
	svc, closer, err := cri.Dial(ctx, "unix://"+filepath.Join(cfg.Run, SocketName))
	if err != nil {
		return nil, err
	}
	admin := dialAdmin(filepath.Join(cfg.Run, adminSocketName))
	return &Node{cfg: cfg, svc: svc, images: admin, close: []func() error{closer.Close, admin.close}}, nil
}

// Close ends the node of this process, or the connection to another's. Pods
// keep running. When no pod is left, the network is taken away with it.
func (n *Node) Close(ctx context.Context) error {
	if n.local == nil {
		return n.closeAll()
	}
	var errs []error
	if idle, err := n.local.runtime.Idle(); err != nil {
		errs = append(errs, err)
	} else if idle {
		errs = append(errs, n.local.network.Remove(ctx))
	}
	return errors.Join(append(errs, n.closeAll())...)
}

func (n *Node) closeAll() error {
	var errs []error
	for i := len(n.close) - 1; i >= 0; i-- {
		errs = append(errs, n.close[i]())
	}
	n.close = nil
	return errors.Join(errs...)
}

// Lock takes a root directory without running its node: for who changes what
// only a node may. When a process runs it, the error is a *LockedError.
func Lock(root string) (unlock func() error, err error) { return lock(root) }

// Holder names the process that runs the node of a root directory; "" when
// none does.
func Holder(root string) (string, error) {
	f, err := os.OpenFile(filepath.Join(root, lockName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the node's lock: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, rerr := io.ReadAll(io.LimitReader(f, 4096))
		return cmp.Or(strings.TrimSpace(string(holder)), "an unknown process"), rerr
	}
	return "", err
}

// lockName is the lock's below a root directory.
const lockName = "node.lock"

// lock takes the root directory for this process. The kernel gives it back
// when the process ends, however it does.
func lock(root string) (unlock func() error, err error) {
	path := filepath.Join(root, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the node's lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for n := 0; n < 5 && errors.Is(err, unix.EWOULDBLOCK); n++ {
		time.Sleep(10 * time.Millisecond) // whoever asks for the holder has it for a moment
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 4096))
		return nil, &LockedError{Root: root, Holder: strings.TrimSpace(string(holder))}
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "PID %d: %s\n", os.Getpid(), strings.Join(os.Args, " ")), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("writing %s: %w", path, err)
	}
	return f.Close, nil
}
