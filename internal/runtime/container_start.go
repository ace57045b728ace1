package runtime

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/crilog"
	"unipod.dev/unipod/internal/device"
	"unipod.dev/unipod/internal/fault"
	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/recipe/resolve"
)

// StartContainer implements cri.Runtime. A container whose process can't be
// started is recorded as exited, with the reason StartError, as containerd's.
func (r *Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (_ *runtimeapi.StartContainerResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.gone {
		return nil, fmt.Errorf("container %q was removed: %w", c.id, errdefs.ErrNotFound)
	}
	if st := c.state(); st != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, fmt.Errorf("container %q is in %s state", c.id, st)
	}
	if err := r.startContainer(ctx, c); err != nil {
		now := time.Now()
		uerr := c.update(func(rec *ContainerRecord) {
			rec.StartedAt, rec.FinishedAt = now, now
			rec.ExitCode, rec.Reason, rec.Message = startErrorCode, "StartError", "failed to start container: "+err.Error()
		})
		if uerr != nil {
			r.log.Error("recording a failed start", "container", c.id, "error", uerr)
		}
		close(c.exited)
		c.letGo()
		return nil, fmt.Errorf("failed to start container %q: %w", c.id, err)
	}
	m := c.config.Metadata
	r.log.Info("container started", "pod", podName(c.sandbox), "uid", c.sandbox.config.Metadata.Uid, "container", m.Name, "id", c.id)
	r.emit(c.id, c.sandbox, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.StartContainerResponse{}, nil
}

func podName(s *sandbox) string {
	return s.config.Metadata.Namespace + "/" + s.config.Metadata.Name
}

// closers closes in reverse what a start opened and handed to pause.
type closers []func() error

func (cl *closers) add(f func() error) { *cl = append(*cl, f) }

func (cl closers) close() {
	for i := len(cl) - 1; i >= 0; i-- {
		cl[i]()
	}
}

// startContainer makes the container's process; on error nothing of it is
// left but its record and writable layer.
func (r *Runtime) startContainer(ctx context.Context, c *container) (err error) {
	conn, err := c.sandbox.live()
	if err != nil {
		return err
	}
	var undo undo
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	var open closers
	defer func() { open.close() }()
	p, err := r.prepareStart(ctx, c, &undo, &open)
	if err != nil {
		return err
	}
	fault.Point("start.prepared")
	// The exit may be reported before Spawn returns: finish waits for op.
	p.io.start(p.log)
	proc, err := conn.Spawn(ctx, p.request)
	if err != nil {
		return err
	}
	fault.Point("start.spawned")
	undo = nil
	r.started(c, p, proc)
	return nil
}

// preparedStart is all that a container's process is made of.
type preparedStart struct {
	request pause.SpawnRequest
	recipe  *recipe.Recipe
	io      *containerIO
	log     *crilog.Log
}

// prepareStart makes and opens what the container's process needs: undo takes
// back what was made should the start fail, open closes what pause has by then.
func (r *Runtime) prepareStart(ctx context.Context, c *container, undo *undo, open *closers) (*preparedStart, error) {
	privileged := c.config.GetLinux().GetSecurityContext().GetPrivileged()
	if privileged && !c.sandbox.config.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, invalid("no privileged container allowed in sandbox")
	}
	var err error
	if c.rootfs == nil { // made by an earlier node
		if c.rootfs, err = r.mountRootfs(ctx, c); err != nil {
			return nil, err
		}
	}
	devices, rules, err := containerDevices(c)
	if err != nil {
		return nil, err
	}
	// These two need nothing of each other, and a processor each.
	grouped := make(chan error, 1)
	go func() { grouped <- r.makeGroup(c, rules, undo) }()
	spec, cio, err := r.containerSpec(ctx, c, devices, open)
	gerr := <-grouped
	if err == nil {
		undo.add(func() { cio.closeFiles() })
		err = gerr
	}
	if err != nil {
		return nil, err
	}
	fault.Point("start.cgroup")
	if err := c.showGroup(spec, open); err != nil {
		return nil, err
	}
	place, err := openPlace(c.group, c.sandbox.userNS())
	if err != nil {
		return nil, err
	}
	open.add(func() error { place.close(); return nil })
	spec.CgroupProcs = place.procs
	spec.CgroupNS = r.cfg.Cgroups.PrivateNamespace(privileged)
	if err := resolve.Targets(c.rootfs, spec.Mounts); err != nil {
		return nil, err
	}
	rcp, err := recipe.Container(*spec)
	if err != nil {
		return nil, err
	}
	log, err := crilog.Open(c.rec.LogPath)
	if err != nil {
		return nil, err
	}
	undo.add(func() { log.Close() })
	flags, pidns, err := c.pidNamespace(r)
	if err != nil {
		return nil, err
	}
	if pidns != nil {
		open.add(pidns.Close)
	}
	return &preparedStart{recipe: rcp, io: cio, log: log, request: pause.SpawnRequest{
		ID: c.id, Cloneflags: flags | unix.CLONE_NEWNS, PIDNamespace: pidns, Cgroup: place.dir, Recipe: rcp, Keep: cio.keep(c.pts),
	}}, nil
}

// started takes note of a container's process.
func (r *Runtime) started(c *container, p *preparedStart, proc *pause.Process) {
	c.mu.Lock()
	c.pidfd, c.io = proc.Pidfd, p.io
	c.rootfs.Close() // the container's mount namespace holds it now
	c.rootfs = nil
	c.mu.Unlock()
	err := c.update(func(rec *ContainerRecord) {
		rec.StartedAt, rec.PID = time.Now(), proc.PID
	})
	if err != nil {
		r.log.Error("recording a started container", "container", c.id, "error", err)
		return // it runs; a later node finds it in pause's list
	}
	fault.Point("start.recorded")
	// For people, who can wait: printing takes longer than most steps.
	r.background.Go(func() {
		c.op.Lock()
		defer c.op.Unlock()
		if !c.gone {
			r.keepRecipe(c.dir, p.recipe)
		}
	})
}

// keepRecipe writes the printed recipe where anatomy finds it.
func (r *Runtime) keepRecipe(dir string, rcp *recipe.Recipe) {
	if err := writeFile(dir, "recipe.txt", []byte(rcp.String())); err != nil {
		r.log.Warn("keeping a recipe for people to read", "error", err)
	}
}

// makeGroup makes the container's cgroup.
func (r *Runtime) makeGroup(c *container, rules []cgroup.DeviceRule, undo *undo) error {
	res := cgroup.FromCRI(c.rec.resources())
	res.Devices = rules
	res.AllDevices = c.config.GetLinux().GetSecurityContext().GetPrivileged()
	if err := c.group.Create(res); err != nil {
		return err
	}
	undo.add(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c.group.Kill(ctx)
		if err := c.group.Remove(); err != nil {
			r.log.Warn("undoing a container's cgroup", "container", c.id, "error", err)
		}
	})
	return nil
}

// containerDevices translates the devices the request names.
func containerDevices(c *container) ([]device.Node, []cgroup.DeviceRule, error) {
	var devices []device.Node
	var rules []cgroup.DeviceRule
	for _, d := range c.config.Devices {
		found, err := device.FromHost(d.HostPath, d.ContainerPath, d.Permissions)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range found {
			devices = append(devices, f)
			rules = append(rules, cgroup.DeviceRule{Type: f.Type, Major: int64(f.Major), Minor: int64(f.Minor), Access: f.Access})
		}
	}
	if c.config.GetLinux().GetSecurityContext().GetPrivileged() {
		host, err := device.All()
		if err != nil {
			return nil, nil, fmt.Errorf("listing the host's devices: %w", err)
		}
		devices = append(devices, host...)
	}
	return devices, rules, nil
}

// containerSpec opens everything the recipe names; open is told how to close
// it once pause has it.
func (r *Runtime) containerSpec(ctx context.Context, c *container, devices []device.Node, open *closers) (_ *recipe.ContainerSpec, _ *containerIO, err error) {
	sc := c.config.GetLinux().GetSecurityContext()
	mounts, err := r.prepareMounts(ctx, c, c.rec.MountLabel)
	if err != nil {
		return nil, nil, err
	}
	open.add(func() error { mounts.close(); return nil })

	spec := &recipe.ContainerSpec{
		Rootfs:         c.rootfs,
		ReadonlyRootfs: sc.GetReadonlyRootfs(),
		Mounts:         mounts.list,
		UserNS:         c.sandbox.userNS(),
		PrivateProc:    true,
		Sysfs:          "ro",
		MaskedPaths:    sc.GetMaskedPaths(),
		ReadonlyPaths:  sc.GetReadonlyPaths(),
	}
	if sc.GetPrivileged() {
		spec.Sysfs, spec.MaskedPaths, spec.ReadonlyPaths = "rw", nil, nil
	}
	for at := range c.rec.ImageConfig.Volumes {
		if at = path.Clean("/" + at); at != "/" {
			spec.Volumes = append(spec.Volumes, at)
		}
	}
	slices.Sort(spec.Volumes)
	args, err := processArgs(c.config, &c.rec.ImageConfig)
	if err != nil {
		return nil, nil, err
	}
	if spec.Process, err = r.process(c, args); err != nil {
		return nil, nil, err
	}
	spec.SELinuxLabel, spec.MountLabel = c.rec.ProcessLabel, c.rec.MountLabel
	for _, d := range devices {
		if device.InDev(d.Path) {
			continue // made with /dev
		}
		m, err := d.Mount()
		if err != nil {
			return nil, nil, err
		}
		open.add(m.Close)
		spec.Mounts = append(spec.Mounts, recipe.Mount{Source: m, Target: d.Path, File: true, Why: "mounting device " + d.HostPath + " at " + d.Path})
	}
	cio, err := c.wire(spec, mounts.covered, devices, open)
	if err != nil {
		return nil, nil, err
	}
	return spec, cio, nil
}

// showGroup mounts the container's view of the cgroups, unless a volume is
// where it would be.
func (c *container) showGroup(spec *recipe.ContainerSpec, open *closers) error {
	for _, m := range spec.Mounts {
		if m.Target == "/sys/fs/cgroup" || m.Target == "/sys" {
			return nil
		}
	}
	views, err := c.group.ContainerMounts(c.config.GetLinux().GetSecurityContext().GetPrivileged())
	if err != nil {
		return err
	}
	for _, v := range views {
		open.add(v.Source.Close)
		spec.Cgroupfs = append(spec.Cgroupfs, recipe.Mount{Source: v.Source, Target: v.Target, Why: v.Why})
	}
	return nil
}

// wire makes the container's /dev and its standard streams.
func (c *container) wire(spec *recipe.ContainerSpec, covered map[string]bool, devices []device.Node, open *closers) (_ *containerIO, err error) {
	options := device.Options{Nodes: devices, Console: c.config.Tty}
	if c.sandbox.userNS() {
		u := c.sandbox.namespaces().UsernsOptions
		options.UIDMap, options.GIDMap = sysMap(u.Uids), sysMap(u.Gids)
	}
	if !covered["/dev"] {
		if spec.Dev, err = device.Make(options); err != nil {
			return nil, err
		}
		open.add(spec.Dev.Close)
		spec.Shm = !covered["/dev/shm"]
		spec.Mqueue = !covered["/dev/mqueue"]
	}
	pts, err := device.Devpts(options.GIDMap)
	if err != nil {
		return nil, err
	}
	c.pts = pts // execs with a terminal take theirs from it
	if !covered["/dev"] && !covered["/dev/pts"] {
		spec.Devpts = pts
	}
	return c.streams(&spec.Process, pts, c.config.Tty, c.config.Stdin, open)
}

// streams makes the standard streams of a process of the container: pipes, or
// a terminal of the container's devpts, of which the recipe also makes a
// first process's /dev/console.
func (c *container) streams(p *recipe.Process, pts *os.File, tty, stdin bool, open *closers) (*containerIO, error) {
	if !tty {
		cio, child, err := newPipeIO(stdin)
		if err != nil {
			return nil, err
		}
		open.add(func() error { child.close(); return nil })
		if c.sandbox.userNS() {
			if err := c.own(child); err != nil {
				cio.closeFiles()
				return nil, err
			}
		}
		p.Stdin, p.Stdout, p.Stderr = child.stdin, child.stdout, child.stderr
		return cio, nil
	}
	if pts == nil {
		return nil, fmt.Errorf("the container has no /dev/pts to take a terminal from: %w", errdefs.ErrFailedPrecondition)
	}
	master, slave, err := device.OpenPTY(pts)
	if err != nil {
		return nil, err
	}
	open.add(master.Close)
	open.add(slave.Close)
	p.Terminal = true
	p.Stdin, p.Stdout, p.Stderr = slave, slave, slave
	return newTTYIO(master)
}

// own gives a pod's streams to its user from outside of the user namespace,
// from inside of which that can't be done.
func (c *container) own(child *stdio) error {
	u := c.sandbox.namespaces().UsernsOptions
	uid, gid := hostID(u.Uids, c.rec.User.UID), hostID(u.Gids, c.rec.User.GID)
	for _, f := range []*os.File{child.stdin, child.stdout, child.stderr} {
		if f == nil {
			continue
		}
		if err := unix.Fchown(int(f.Fd()), int(uid), int(gid)); err != nil {
			return fmt.Errorf("giving a stream to the container's user: %w", err)
		}
	}
	return nil
}

// hostID maps an ID of the pod's user namespace to the host's.
func hostID(m []*runtimeapi.IDMapping, id uint32) uint32 {
	for _, e := range m {
		if id >= e.ContainerId && id-e.ContainerId < e.Length {
			return e.HostId + id - e.ContainerId
		}
	}
	return 65534
}

// pidNamespace says which PID namespace the container's process is born in:
// its own, pause's (shared or the host's), or another container's.
func (c *container) pidNamespace(r *Runtime) (flags uintptr, target *os.File, err error) {
	ns := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch ns.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		return unix.CLONE_NEWPID, nil, nil
	case runtimeapi.NamespaceMode_TARGET:
		t, err := r.container(ns.TargetId)
		if err != nil {
			return 0, nil, fmt.Errorf("invalid target container: %w", err)
		}
		if t.sandbox != c.sandbox {
			return 0, nil, invalid("target container %s belongs to another pod", t.id)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.pidfd == nil || t.rec.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return 0, nil, fmt.Errorf("invalid target container: %s is not running", t.id)
		}
		fd, err := unix.FcntlInt(t.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return 0, nil, err
		}
		return 0, os.NewFile(uintptr(fd), "pidfd"), nil
	}
	return 0, nil, nil
}

// privatePID tells whether all of the container's processes end with its
// first.
func (c *container) privatePID() bool {
	return c.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_CONTAINER
}
