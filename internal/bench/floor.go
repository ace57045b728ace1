package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// MeasureFloor makes n times what a pod can't do without, by the bare system
// calls and nothing else: two control groups, a process in new network, IPC,
// UTS, mount and PID namespaces, a veth pair with an address, an overlay, and
// a process in new mount and PID namespaces on it. It ends with killing both
// and removing control groups and overlay.
//
// It happens in a network namespace of its own.
func MeasureFloor(ctx context.Context, n int) (*Figures, error) {
	type result struct {
		f   *Figures
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread's namespaces are changed, so it ends with the goroutine.
		runtime.LockOSThread()
		f, err := measureFloor(ctx, n)
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

func measureFloor(ctx context.Context, n int) (_ *Figures, err error) {
	b, err := newBare()
	if err != nil {
		return nil, fmt.Errorf("the floor: %w", err)
	}
	defer func() { err = errors.Join(err, b.close()) }()
	var sandbox, container, all, execs, stops []time.Duration
	for i := range n {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p, err := b.start(i)
		if err != nil {
			return nil, fmt.Errorf("the floor: %w", errors.Join(err, p.stop()))
		}
		sandbox, container, all = append(sandbox, p.sandbox), append(container, p.up), append(all, p.sandbox+p.up)
		at := time.Now()
		if err := b.exec(); err != nil {
			return nil, fmt.Errorf("the floor: %w", errors.Join(err, p.stop()))
		}
		execs = append(execs, time.Since(at))
		at = time.Now()
		if err := p.stop(); err != nil {
			return nil, fmt.Errorf("the floor: %w", err)
		}
		stops = append(stops, time.Since(at))
	}
	return &Figures{
		Name: "floor", Version: "bare system calls",
		Sandbox: TimesOf(sandbox), Start: TimesOf(container), PodStart: TimesOf(all), Exec: TimesOf(execs), Stop: TimesOf(stops),
	}, nil
}

// bare is what the floor's pods share.
type bare struct {
	dir     string // rootfs/ is the image, the rest the pods'
	bridge  *netlink.Bridge
	cgroups []string // one directory per controller, or the unified one
	v2      bool
}

func newBare() (_ *bare, err error) {
	b := &bare{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "unipod-floor-"); err != nil {
		return b, err
	}
	if err := unpackRoot(filepath.Join(b.dir, "rootfs")); err != nil {
		return b, err
	}
	if err := b.makeCgroups(); err != nil {
		return b, err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return b, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return b, os.NewSyscallError("mount", err)
	}
	b.bridge = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "floor0", Flags: net.FlagUp}}
	return b, netlink.LinkAdd(b.bridge)
}

// makeCgroups makes the parents of the pods' control groups.
func (b *bare) makeCgroups() error {
	var parents []string
	for _, c := range []string{"memory", "cpu", "pids", "devices"} {
		if dir := filepath.Join("/sys/fs/cgroup", c); exists(filepath.Join(dir, "cgroup.procs")) {
			parents = append(parents, dir)
		}
	}
	if len(parents) == 0 {
		b.v2 = true
		parents = []string{"/sys/fs/cgroup"}
	}
	for _, p := range parents {
		dir := filepath.Join(p, "unipod-floor-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		b.cgroups = append(b.cgroups, dir)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (b *bare) close() error {
	var err error
	for _, dir := range b.cgroups {
		err = errors.Join(err, os.Remove(dir))
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// barePod is one pod of the floor.
type barePod struct {
	b           *bare
	dir         string
	pods, kids  []string // control groups
	parent, app *os.Process
	merged      string
	sandbox, up time.Duration
}

func (b *bare) start(i int) (*barePod, error) {
	at := time.Now()
	p := &barePod{b: b, dir: filepath.Join(b.dir, strconv.Itoa(i))}
	for _, base := range b.cgroups {
		pod := filepath.Join(base, strconv.Itoa(i))
		if err := os.Mkdir(pod, 0o755); err != nil {
			return p, err
		}
		p.pods = append(p.pods, pod)
		kid := filepath.Join(pod, "c")
		if err := os.Mkdir(kid, 0o755); err != nil {
			return p, err
		}
		p.kids = append(p.kids, kid)
	}
	var err error
	root := filepath.Join(b.dir, "rootfs")
	if p.parent, err = b.spawn(root, unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWNS|unix.CLONE_NEWPID, p.kids, appCommand); err != nil {
		return p, err
	}
	if err := b.connect(p.parent.Pid, i); err != nil {
		return p, err
	}
	p.sandbox = time.Since(at)
	at = time.Now()
	if err := p.mount(root); err != nil {
		return p, err
	}
	if p.app, err = b.spawn(p.merged, unix.CLONE_NEWNS|unix.CLONE_NEWPID, p.kids, appCommand); err != nil {
		return p, err
	}
	p.up = time.Since(at)
	return p, nil
}

// spawn starts a process on a root, in new namespaces and the control groups.
func (b *bare) spawn(root string, flags uintptr, groups []string, command []string) (*os.Process, error) {
	attr := &syscall.SysProcAttr{Cloneflags: flags, Chroot: root}
	if b.v2 && len(groups) > 0 {
		dir, err := os.Open(groups[0])
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	p, err := os.StartProcess("/bin/"+command[0], command, &os.ProcAttr{Dir: "/", Env: []string{}, Sys: attr})
	if err != nil || b.v2 {
		return p, err
	}
	for _, g := range groups {
		if err := os.WriteFile(filepath.Join(g, "cgroup.procs"), []byte(strconv.Itoa(p.Pid)), 0); err != nil {
			return p, err
		}
	}
	return p, nil
}

// connect gives the namespace of a process a cable to the bridge and an
// address.
func (b *bare) connect(pid, i int) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	name := fmt.Sprintf("floor%d", i+1)
	err = netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MasterIndex: b.bridge.Index, Flags: net.FlagUp},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(ns)),
	})
	if err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 99, byte(i>>8), byte(i)), Mask: net.CIDRMask(16, 32)}}
	return errors.Join(h.AddrAdd(eth0, address), h.LinkSetUp(eth0), h.LinkSetUp(lo))
}

// mount makes the container's overlay.
func (p *barePod) mount(lower string) error {
	merged := filepath.Join(p.dir, "merged")
	for _, dir := range []string{p.dir, merged, filepath.Join(p.dir, "upper"), filepath.Join(p.dir, "work")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	m, err := sys.NewMount("overlay", 0,
		sys.Option{Key: "lowerdir", Value: lower}, sys.Option{Key: "upperdir", Value: filepath.Join(p.dir, "upper")},
		sys.Option{Key: "workdir", Value: filepath.Join(p.dir, "work")}, sys.Option{Key: "volatile"})
	if err != nil {
		return err
	}
	defer m.Close()
	target, err := os.OpenFile(merged, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := sys.MoveMount(m, target); err != nil {
		return err
	}
	p.merged = merged
	return nil
}

// exec runs true beside the pod and waits for it.
func (b *bare) exec() error {
	p, err := b.spawn(filepath.Join(b.dir, "rootfs"), 0, nil, []string{"true"})
	if err != nil {
		return err
	}
	state, err := p.Wait()
	if err == nil && !state.Success() {
		err = errors.New("true: " + state.String())
	}
	return err
}

// stop ends and removes what start made, as far as it came.
func (p *barePod) stop() error {
	var err error
	for _, proc := range []*os.Process{p.app, p.parent} {
		if proc != nil {
			kerr := proc.Kill()
			_, werr := proc.Wait()
			err = errors.Join(err, kerr, werr)
		}
	}
	if p.merged != "" {
		err = errors.Join(err, unix.Unmount(p.merged, unix.MNT_DETACH))
	}
	for _, dir := range append(p.kids, p.pods...) {
		err = errors.Join(err, removeCgroup(dir))
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// removeCgroup removes a control group, which stays busy for a moment after
// its last process has been waited for.
func removeCgroup(dir string) error {
	for range 1000 {
		err := unix.Rmdir(dir)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		runtime.Gosched()
	}
	return fmt.Errorf("%s stays busy", strings.TrimPrefix(dir, "/sys/fs/cgroup/"))
}
