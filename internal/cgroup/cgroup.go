// Package cgroup makes, limits, measures, kills and removes the control
// groups of pods and containers.
//
// A pod's group is PARENT/ID, a container's PARENT/ID/CONTAINER. What is in
// the pod's group, its limits and its figures cover pause and every
// container. No process is put anywhere by this package: a caller clones its
// process into the descriptor of [Group.Dir] and lets it write "0" to those of
// [Group.Procs], so a process is born where it belongs.
//
// cgroup v1 and v2 are both served. The cgroup2 hierarchy is used on both: on
// v1 (where it has no controllers, and is mounted privately if the host
// doesn't mount it) it is what makes killing atomic and lets a process be
// cloned into its place.
//
// A [Hierarchy] is safe for concurrent use, and so are different Groups; calls
// on one Group are the caller's to order. Nothing is kept in memory that a
// restarted node would miss: a Group is a name.
//
// Floor 1. It imports internal/sys.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // the device filters of both versions
	"golang.org/x/sys/unix"
)

// DefaultRoot and DefaultSlice are the parents of pods that name none, with
// cgroupfs and with systemd: the same place.
const (
	DefaultRoot  = "/unipod"
	DefaultSlice = "unipod.slice"
)

// pauseLeaf is the group of a pod's own process in the cgroup2 hierarchy,
// where a group with controllers for its children may hold no process.
const pauseLeaf = "pause"

// Config says how control groups are made.
type Config struct {
	// Driver is "cgroupfs" or "systemd"; "" chooses systemd where it is
	// PID 1 and cgroup v2 is in use, as kubeadm's default does.
	Driver string
	// Root is the parent of pods that name no cgroup_parent: a path with
	// cgroupfs ("" = DefaultRoot), a slice with systemd ("" = DefaultSlice).
	Root string
}

// Hierarchy is the machine's control groups.
type Hierarchy struct {
	version int
	driver  string
	root    string
	trees   []tree // v1 only
	unified tree
	// unifiedMount keeps a private cgroup2 mount alive, nil where the host
	// mounts it.
	unifiedMount *os.File
	swap         bool // swap is limited and counted
	hugetlb2     bool // on v1: the hugetlb controller is with cgroup2

	// placeholders are the goroutines that end with closing; systemd only.
	placeholders sync.WaitGroup
	closing      context.Context
	close        context.CancelFunc

	mu    sync.Mutex
	bases map[string]bool // parents known to exist in every tree
	// trim keeps empty parents from being removed while a group is made in
	// them.
	trim sync.RWMutex
}

// Open finds the control groups of this machine.
func Open(cfg Config) (*Hierarchy, error) {
	h := &Hierarchy{version: 1, driver: cfg.Driver, root: cfg.Root, bases: map[string]bool{}}
	if err := h.findTrees(); err != nil {
		return nil, err
	}
	if err := h.configure(); err != nil {
		if h.unifiedMount != nil {
			h.unifiedMount.Close()
		}
		return nil, err
	}
	h.closing, h.close = context.WithCancel(context.Background())
	return h, nil
}

// configure settles driver and root.
func (h *Hierarchy) configure() error {
	systemd := runningSystemd()
	switch {
	case h.driver == "" && systemd && h.version == 2:
		h.driver = DriverSystemd
	case h.driver == "":
		h.driver = DriverCgroupfs
	case h.driver == DriverSystemd && !systemd:
		return fmt.Errorf("cgroup driver systemd: systemd is not running on this machine, use cgroupfs: %w", errdefs.ErrFailedPrecondition)
	case h.driver != DriverSystemd && h.driver != DriverCgroupfs:
		return fmt.Errorf("cgroup driver %q: want cgroupfs or systemd: %w", h.driver, errdefs.ErrInvalidArgument)
	}
	var err error
	if h.driver == DriverSystemd {
		if h.version != 2 {
			return fmt.Errorf("cgroup driver systemd needs cgroup v2, use cgroupfs on v1: %w", errdefs.ErrFailedPrecondition)
		}
		if h.root == "" {
			h.root = DefaultSlice
		}
		_, err = expandSlice(h.root)
	} else {
		if h.root == "" {
			h.root = DefaultRoot
		}
		_, err = cleanParent(h.root)
	}
	if err != nil {
		return fmt.Errorf("cgroup root: %w", err)
	}
	return nil
}

// The drivers.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// Version is 1 or 2: where the controllers are.
func (h *Hierarchy) Version() int { return h.version }

// Driver is "cgroupfs" or "systemd".
func (h *Hierarchy) Driver() string { return h.driver }

// Close removes the root of pods if it is ours and empty.
func (h *Hierarchy) Close() error {
	h.close()
	h.placeholders.Wait()
	var errs []error
	if h.driver == DriverCgroupfs {
		base, _ := cleanParent(h.root)
		for _, t := range append(h.trees, h.unified) {
			err := unix.Rmdir(t.dir + base)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
				errs = append(errs, &os.PathError{Op: "rmdir", Path: t.dir + base, Err: err})
			}
		}
	}
	if h.unifiedMount != nil {
		errs = append(errs, h.unifiedMount.Close())
	}
	return errors.Join(errs...)
}

// Group is the name of a pod's or a container's control group; it may or may
// not exist.
type Group struct {
	h    *Hierarchy
	base string // what the pod's group is made in
	path string // below the root of every hierarchy
	pod  bool
	// slice is the systemd unit that the pod's scope goes in, "" with
	// cgroupfs and for containers.
	slice string
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,200}$`)

// Pod names the group of pod sandbox id below parent, the CRI's
// cgroup_parent: a path with the cgroupfs driver, a slice with systemd, the
// Hierarchy's root when empty.
func (h *Hierarchy) Pod(parent, id string) (*Group, error) {
	if !validName.MatchString(id) {
		return nil, fmt.Errorf("cgroup of pod %q: not a valid name: %w", id, errdefs.ErrInvalidArgument)
	}
	if parent == "" {
		parent = h.root
	}
	g := &Group{h: h, pod: true}
	var err error
	if h.driver == DriverSystemd {
		g.slice = parent
		if g.base, err = expandSlice(parent); err == nil {
			g.path = path.Join(g.base, scopePrefix+"-"+id+".scope")
		}
	} else if g.base, err = cleanParent(parent); err == nil {
		g.path = path.Join(g.base, id)
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup of pod %s: cgroup_parent: %w", id, err)
	}
	return g, nil
}

// Child names the group of a container of the pod.
func (g *Group) Child(id string) (*Group, error) {
	if !g.pod {
		return nil, fmt.Errorf("cgroup %s: a container's group has no children: %w", g.path, errdefs.ErrInvalidArgument)
	}
	if !validName.MatchString(id) || id == pauseLeaf {
		return nil, fmt.Errorf("cgroup of container %q: not a valid name: %w", id, errdefs.ErrInvalidArgument)
	}
	return &Group{h: g.h, base: g.base, path: g.path + "/" + id}, nil
}

// Path is where the group is below the root of every hierarchy.
func (g *Group) Path() string { return g.path }

// Ours says whether the pod's group is below the Hierarchy's root, where
// nobody else limits pods. Elsewhere a kubelet does, in the group above.
func (g *Group) Ours() bool {
	root, err := cleanParent(g.h.root)
	if g.h.driver == DriverSystemd {
		root, err = expandSlice(g.h.root)
	}
	return err == nil && (g.base == root || strings.HasPrefix(g.base, root+"/"))
}

// Paths is the group's directory by controller ("" is cgroup2's hierarchy),
// of those that exist.
func (g *Group) Paths() map[string]string {
	m := map[string]string{}
	for _, t := range g.h.trees {
		if !exists(t.dir + g.path) {
			continue
		}
		for _, name := range t.names {
			m[name] = t.dir + g.path
		}
	}
	if dir := g.h.unified.dir + g.path; exists(dir) {
		m[""] = dir
	}
	return m
}

// Exists says whether the group is there, in whole or in part.
func (g *Group) Exists() bool { return len(g.Paths()) > 0 }

// Create makes the group and applies r. It is idempotent; when it fails,
// what it made is removed.
func (g *Group) Create(r Resources) (err error) {
	if err := g.h.check(r); err != nil {
		return fmt.Errorf("creating cgroup %s: %w", g.path, err)
	}
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for i := len(made) - 1; i >= 0; i-- {
			unix.Rmdir(made[i])
		}
		err = fmt.Errorf("creating cgroup %s: %w", g.path, err)
	}()
	if g.slice != "" {
		if err := g.startScope(); err != nil {
			return err
		}
	}
	g.h.trim.RLock()
	defer g.h.trim.RUnlock()
	if err := g.h.ensureBase(g.base); err != nil {
		return err
	}
	made, err = g.mkdirs()
	if errors.Is(err, unix.ENOENT) {
		// The parent was removed behind our back (a kubelet tidying up).
		g.h.forgetBase(g.base)
		if err = g.h.ensureBase(g.base); err == nil {
			var more []string
			more, err = g.mkdirs()
			made = append(made, more...)
		}
	}
	if err != nil {
		return err
	}
	if err := g.apply(r); err != nil {
		return err
	}
	if g.pod || r.AllDevices {
		return nil
	}
	return g.limitDevices(r.Devices)
}

// mkdirs makes the group's directories and reports those that were missing.
func (g *Group) mkdirs() (made []string, err error) {
	mk := func(dir string) error {
		switch err := unix.Mkdir(dir, 0o755); {
		case err == nil:
			made = append(made, dir)
		case !errors.Is(err, unix.EEXIST):
			return &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
		return nil
	}
	for _, t := range g.h.trees {
		if !t.own {
			continue
		}
		if err := mk(t.dir + g.path); err != nil {
			return made, err
		}
	}
	dir := g.h.unified.dir + g.path
	if err := mk(dir); err != nil {
		return made, err
	}
	if !g.pod {
		return made, nil
	}
	if g.h.version == 2 {
		if err := enableControllers(dir); err != nil {
			return made, err
		}
	}
	return made, mk(dir + "/" + pauseLeaf)
}

// Update changes the limits of a group that exists, leaving alone what r
// leaves unset; device rules are not changed.
func (g *Group) Update(r Resources) error {
	if err := g.h.check(r); err != nil {
		return fmt.Errorf("updating cgroup %s: %w", g.path, err)
	}
	if err := g.apply(r); err != nil {
		if errors.Is(err, os.ErrNotExist) && !g.Exists() {
			return fmt.Errorf("updating cgroup %s: %w: %w", g.path, errdefs.ErrNotFound, err)
		}
		return fmt.Errorf("updating cgroup %s: %w", g.path, err)
	}
	return nil
}

// Dir opens the group's directory in the cgroup2 hierarchy, for
// CLONE_INTO_CGROUP. Use it together with Procs, on every machine: on v1 it
// is what Kill works by. A pod's group gives the place of its pause process.
func (g *Group) Dir() (*os.File, error) {
	dir := g.h.unified.dir + g.path
	if g.pod {
		dir += "/" + pauseLeaf
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Procs opens the files to which a new process, while it has one thread,
// writes "0" to enter the group's v1 hierarchies. None on v2.
//
// They are v1's "tasks" files: moving the only thread moves the process, and
// the kernel does it without waiting for an RCU grace period as it must for
// cgroup.procs (see cgroup_procs_write_start in kernel/cgroup/cgroup.c).
func (g *Group) Procs() ([]*os.File, error) {
	var files []*os.File
	for _, t := range g.h.trees {
		dir := t.dir + g.path
		if !t.own && !exists(dir) {
			// A container's processes are children of pause and begin in
			// pause's place, so only pause has to enter these.
			if !g.pod || !t.enter {
				continue
			}
			dir = t.dir + g.base
		}
		fd, err := unix.Open(dir+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			closeAll(files)
			return nil, &os.PathError{Op: "open", Path: dir + "/tasks", Err: err}
		}
		files = append(files, os.NewFile(uintptr(fd), dir+"/tasks"))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// removeTries and removeDelay bound the wait for a dying process to leave its
// group: 1 ms doubling to 64, about a second.
const (
	removeTries = 20
	removeDelay = 64 * time.Millisecond
)

// Remove removes the group and every group in it, and a pod's parents up to
// the Hierarchy's root if they are then empty; those of a kubelet are its own.
// Its processes must be dead (see Kill); one that is still on its way out is
// waited for, up to a second. A group that isn't there is no error.
func (g *Group) Remove() error {
	var errs []error
	if g.slice != "" && exists(g.h.unified.dir+g.path) {
		errs = append(errs, g.stopScope())
	}
	for _, t := range g.h.trees {
		errs = append(errs, removeTree(t.dir+g.path))
	}
	errs = append(errs, removeTree(g.h.unified.dir+g.path))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing cgroup %s: %w", g.path, err)
	}
	if g.pod {
		g.h.trimBase(g.base)
	}
	return nil
}

func removeTree(dir string) error {
	delay := time.Millisecond
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOTEMPTY) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		entries, rerr := os.ReadDir(dir)
		if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			return rerr
		}
		children := false
		for _, e := range entries {
			if e.IsDir() {
				children = true
				if err := removeTree(dir + "/" + e.Name()); err != nil {
					return err
				}
			}
		}
		if children && try == 0 {
			continue
		}
		if try >= removeTries {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(delay)
		delay = min(2*delay, removeDelay)
	}
}

// PIDs lists the processes of the group and of all in it, in this process's
// PID namespace. A group that isn't there has none.
func (g *Group) PIDs() ([]int, error) {
	pids, err := cgroups.GetAllPids(g.h.unified.dir + g.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return pids, err
}

// cleanParent checks a cgroup_parent of the cgroupfs driver.
func cleanParent(p string) (string, error) {
	if strings.HasSuffix(p, ".slice") && !strings.Contains(p, "/") {
		return "", fmt.Errorf("%q is a systemd slice, but the cgroup driver is cgroupfs: %w", p, errdefs.ErrInvalidArgument)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", fmt.Errorf("%q: must not contain ..: %w", p, errdefs.ErrInvalidArgument)
		}
	}
	c := path.Clean("/" + p)
	if c == "/" {
		return "", fmt.Errorf("%q: must not be the root: %w", p, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

func exists(p string) bool {
	return unix.Access(p, unix.F_OK) == nil
}
