package recipe

import (
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Mount is something to mount in a container.
type Mount struct {
	// Source is a detached mount with its attributes, mapping and propagation
	// already set. It is moved, so it serves once.
	Source *os.File
	// Target is the absolute path inside the container. It is made if it is
	// missing: as a file if File is set, else as a directory, parents too.
	Target string
	File   bool
	// Why begins the sentence a failure becomes, such as "mounting volume
	// cache at /data"; "" is "mounting " and the target.
	Why string
}

func (m *Mount) why() string {
	if m.Why != "" {
		return m.Why
	}
	return "mounting " + m.Target
}

// ContainerSpec is a container of a pod: its first process and its world.
type ContainerSpec struct {
	Process

	// Rootfs is a detached mount. ReadonlyRootfs makes it read-only after
	// the mount points have been made in it.
	Rootfs         *os.File
	ReadonlyRootfs bool
	// Mounts are mounted in this order, so that one may lie inside an earlier
	// one. One at /dev, /sys or a place below replaces what follows here.
	// Targets in /proc are refused but for the files lxcfs provides.
	Mounts []Mount

	// Dev is a detached tmpfs with the device nodes and symbolic links of
	// /dev. Devpts is a detached devpts; nil is none. Console is a detached
	// bind mount of the terminal for /dev/console; if it is nil and the
	// process has a terminal of Devpts, that becomes the console.
	Dev, Devpts, Console *os.File
	// Shm mounts the pod's /dev/shm, Mqueue its POSIX message queues.
	Shm, Mqueue bool
	// Volumes are directories of the image that stay writable when the root is
	// read-only: those the image declares as volumes. Those of Mounts win.
	Volumes []string
	// PrivateProc mounts a new procfs at /proc: of the container's PID
	// namespace, whichever that is. Without it there is no /proc.
	PrivateProc bool
	// MountLabel is the SELinux label of what is in /dev/mqueue; "" sets none.
	MountLabel string
	// Sysfs mounts the pod's sysfs at /sys: "ro", "rw", or "" for none.
	Sysfs string
	// Cgroupfs is mounted after sysfs, at and below /sys/fs/cgroup.
	Cgroupfs []Mount
	// CgroupNS gives the container a cgroup namespace rooted at the cgroup it
	// is in after CgroupProcs. (CLONE_NEWCGROUP when cloning would root it at
	// pause's.)
	CgroupNS bool

	// MaskedPaths are hidden, ReadonlyPaths made read-only, recursively.
	// Paths that don't exist are ignored.
	MaskedPaths, ReadonlyPaths []string
	// UserNS says that the pod has its own user namespace. The owner of
	// Stdin, Stdout and Stderr must then be the process's user already: from
	// inside it can't be changed.
	UserNS bool
}

// procFiles are the only targets allowed in /proc: files that lxcfs fakes.
var procFiles = []string{
	"cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
	"sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
}

func (s *ContainerSpec) validate() error {
	if err := s.Process.validate(); err != nil {
		return err
	}
	if s.Rootfs == nil {
		return fmt.Errorf("Rootfs: missing")
	}
	if s.Sysfs != "" && s.Sysfs != "ro" && s.Sysfs != "rw" {
		return fmt.Errorf("Sysfs: %q is neither ro nor rw", s.Sysfs)
	}
	for i, m := range slices.Concat(s.Mounts, s.Cgroupfs) {
		field := fmt.Sprintf("Mounts[%d]", i)
		if j := i - len(s.Mounts); j >= 0 {
			field = fmt.Sprintf("Cgroupfs[%d]", j)
		}
		switch target := path.Clean(m.Target); {
		case !path.IsAbs(m.Target):
			return fmt.Errorf("%s.Target: %q is not an absolute path", field, m.Target)
		case target == "/":
			return fmt.Errorf("%s.Target: / is the root file system", field)
		case m.Source == nil:
			return fmt.Errorf("%s.Source: missing for %s", field, m.Target)
		default:
			if rest, ok := within(target, "/proc"); ok && !(m.File && slices.Contains(procFiles, rest)) {
				return fmt.Errorf("%s.Target: %s is inside /proc", field, m.Target)
			}
		}
	}
	for field, paths := range map[string][]string{"MaskedPaths": s.MaskedPaths, "ReadonlyPaths": s.ReadonlyPaths, "Volumes": s.Volumes} {
		for _, p := range paths {
			if !path.IsAbs(p) || path.Clean(p) == "/" {
				return fmt.Errorf("%s: %q can't be one", field, p)
			}
		}
	}
	return nil
}

// container is a container's recipe being written.
type container struct {
	*Builder
	spec *ContainerSpec
	root FD
	// proc and sys are the mounts the container has at /proc and /sys, nil if
	// they are none of ours.
	proc, sys Arg
}

// Container returns the recipe of a container's first process. It is carried
// out by a child of pause that was cloned with a mount namespace of its own.
//
// What an attacker may have prepared: everything in the rootfs and in the
// volumes, which other containers of the pod may be changing all the time.
// What he hasn't got: a process in this mount namespace, before execve.
func Container(spec ContainerSpec) (*Recipe, error) {
	if err := spec.validate(); err != nil {
		return nil, fmt.Errorf("recipe: container: %w", err)
	}
	c := &container{Builder: New(), spec: &spec}
	c.root = c.FD("rootfs", spec.Rootfs)

	c.Call("setting the umask", unix.SYS_UMASK, Int(0o022)) // of mount points
	c.joinCgroups(spec.CgroupProcs)
	if spec.CgroupNS {
		c.Call("making the cgroup namespace", unix.SYS_UNSHARE, Int(unix.CLONE_NEWCGROUP))
	}
	c.stdio(&spec.Process)
	// procfs is made, and all that is written to it written, before anything
	// of the image or of a volume has been looked at.
	_, proc := c.newFS("mounting proc", "proc", safeFS)
	if spec.OOMScoreAdj != nil {
		c.oomScoreAdj(proc, *spec.OOMScoreAdj)
	}
	c.labels(&spec.Process, proc)

	c.Call("attaching the root file system", unix.SYS_MOVE_MOUNT, c.root, Str(""), cwd, Str(pauseRootfs), Int(unix.MOVE_MOUNT_F_EMPTY_PATH))
	c.imageVolumes()
	c.dev()
	c.sysfs()
	c.volumes()
	c.procfs(proc)
	c.mask()
	c.readonly()
	dir := c.makeWorkdir(&spec.Process, c.root)
	if spec.ReadonlyRootfs {
		c.Call("making the root file system read-only", unix.SYS_MOUNT_SETATTR, c.root, Str(""), Int(unix.AT_EMPTY_PATH),
			MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, Int(mountAttrSize))
	}
	c.pivot("changing the root directory", c.root)
	again := c.enterWorkdir(&spec.Process, c.root, dir)
	c.session(&spec.Process)
	c.become(&spec.Process, again, !spec.UserNS)
	return c.Recipe()
}

// replaced says whether one of Mounts takes the place of what is mounted at
// target by default: at the same place, or at /dev or /sys around it.
func (c *container) replaced(target string) bool {
	return slices.ContainsFunc(c.spec.Mounts, func(m Mount) bool {
		at := path.Clean(m.Target)
		_, inside := within(target, at)
		return at == target || (at == "/dev" || at == "/sys") && inside
	})
}

// ownDir makes and opens a directory of the rootfs that must be a real one:
// CVE-2019-19921, CVE-2023-27561: an image whose /proc is a link to somewhere
// else would have the runtime work there.
func (c *container) ownDir(why, name string) Result {
	c.mkdir(why, c.root, name)
	return c.open(why, c.root, name, onlyDir, onlyHere).explained(func(e unix.Errno) string {
		switch e {
		case unix.ENOTDIR, unix.ELOOP:
			return fmt.Sprintf("%s: /%s of the image must be a directory, and no link: %v", why, name, e)
		case unix.EXDEV:
			return fmt.Sprintf("%s: something is mounted at /%s: %v", why, name, e)
		}
		return fmt.Sprintf("%s: %v", why, e)
	})
}

// dev mounts /dev and what belongs in it. Below /dev all is resolved from the
// descriptor of the tmpfs, which the node filled and nobody else has.
func (c *container) dev() {
	s := c.spec
	if s.Dev == nil || c.replaced("/dev") {
		return
	}
	dev := c.FD("dev", s.Dev)
	c.move("mounting /dev", dev, c.ownDir("mounting /dev", "dev"))
	in := func(name, why string, mount Arg) {
		c.mkdir(why, dev, name)
		c.move(why, mount, c.open(why, dev, name, onlyDir, onlyHere))
	}
	if s.Devpts != nil && !c.replaced("/dev/pts") {
		in("pts", "mounting /dev/pts", c.FD("devpts", s.Devpts))
	}
	if s.Shm && !c.replaced("/dev/shm") {
		in("shm", "mounting /dev/shm", c.clone("mounting /dev/shm", pauseShm))
	}
	if s.Mqueue && !c.replaced("/dev/mqueue") {
		_, mqueue := c.newFS("mounting /dev/mqueue", "mqueue", safeFS, labelled(s.MountLabel)...)
		in("mqueue", "mounting /dev/mqueue", mqueue)
	}
	c.console(dev)
}

// console mounts the terminal on /dev/console.
//
// CVE-2025-52565: the terminal comes as a descriptor, and its place in /dev is
// one that no image has touched. The terminal's descriptor is on the devpts
// that was just attached, so it can be copied as a mount.
func (c *container) console(dev FD) {
	const why = "mounting /dev/console"
	var mount Arg
	switch s := c.spec; {
	case c.replaced("/dev/console"):
		return
	case s.Console != nil:
		mount = c.FD("console", s.Console)
	case s.Terminal && s.Devpts != nil && !c.replaced("/dev/pts"):
		mount = c.Call(why, unix.SYS_OPEN_TREE, Int(0), Str(""), Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH))
	default:
		return
	}
	c.Call(why, unix.SYS_MKNODAT, dev, Str("console"), Int(unix.S_IFREG|0o600), Int(0)).Tolerate(unix.EEXIST)
	c.move(why, mount, c.open(why, dev, "console", unix.O_PATH, onlyHere))
}

func (c *container) sysfs() {
	if c.spec.Sysfs != "" && !c.replaced("/sys") {
		const why = "mounting /sys"
		attrs := Int(safeFS)
		if c.spec.Sysfs == "ro" {
			attrs |= unix.MOUNT_ATTR_RDONLY
		}
		_, sys := c.newFS(why, "sysfs", attrs)
		c.move(why, sys, c.ownDir(why, "sys"))
		c.sys = sys
	}
	for i := range c.spec.Cgroupfs {
		if m := &c.spec.Cgroupfs[i]; !c.replaced(path.Clean(m.Target)) {
			c.mount(m, c.root)
		}
	}
}

// volumes mounts all of Mounts that isn't in /proc. procfs is still unmounted:
// a volume that a link of the image leads to /proc is covered by it, or keeps
// it from being mounted, but never covers it.
func (c *container) volumes() {
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		if _, ok := within(path.Clean(m.Target), "/proc"); !ok {
			c.mount(m, c.root)
		}
		if path.Clean(m.Target) == "/sys" {
			c.sys = c.open(m.why(), c.root, "/sys", onlyDir, inRoot)
		}
	}
}

// imageVolumes keeps the image's volumes writable under a read-only root: each
// is mounted on itself before anything else is mounted, so that it holds what
// the image has there and covers nothing.
func (c *container) imageVolumes() {
	if !c.spec.ReadonlyRootfs {
		return
	}
	// What is below these isn't on the root, and needs no help.
	for _, at := range outermost(c.spec.Volumes, "/dev", "/proc", "/sys") {
		if c.replaced(at) {
			continue
		}
		why := "mounting the image's volume " + at
		target := c.target(why, c.root, at, false)
		copied := c.Call(why, unix.SYS_OPEN_TREE, target, Str(""), Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH))
		c.move(why, copied, target)
		c.close(why, target)
	}
}

// mount makes and opens the target and moves the mount there.
//
// CVE-2017-1002101, CVE-2021-30465, CVE-2025-31133: targets are descriptors
// opened inside the root; between the look and the mount there is nothing to
// exchange.
func (c *container) mount(m *Mount, root Arg) {
	why := m.why()
	c.moveOnto(m, c.target(why, root, m.Target, m.File))
}

func (c *container) moveOnto(m *Mount, target Result) {
	why := m.why()
	c.move(why, c.FD("mount:"+m.Target, m.Source), target).explained(func(e unix.Errno) string {
		if e == unix.EINVAL || e == unix.ENOTDIR {
			return fmt.Sprintf("%s: %v (is a directory mounted onto a file, or a file onto a directory?)", why, unix.ENOTDIR)
		}
		return fmt.Sprintf("%s: %v", why, e)
	})
	c.close(why, target)
}

func (c *container) procfs(proc Arg) {
	const why = "mounting proc"
	if !c.spec.PrivateProc {
		return
	}
	c.move(why, proc, c.ownDir(why, "proc"))
	c.proc = proc
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		if file, ok := within(path.Clean(m.Target), "/proc"); ok {
			c.moveOnto(m, c.open(m.why(), proc, file, unix.O_PATH, onlyHere))
		}
	}
}

// outermost returns the cleaned paths, sorted, without those inside another
// of them or of others.
func outermost(paths []string, others ...string) []string {
	var out []string
	clean := make([]string, len(paths))
	for i, p := range paths {
		clean[i] = path.Clean(p)
	}
	slices.Sort(clean)
	for _, p := range slices.Compact(clean) {
		if !slices.ContainsFunc(slices.Concat(out, others), func(o string) bool { _, ok := within(p, o); return ok }) {
			out = append(out, p)
		}
	}
	return out
}

// place is where a path is resolved from, and how.
func (c *container) place(at string) (dir Arg, rest string, resolve uint64) {
	if rest, ok := within(at, "/proc"); ok && c.proc != nil && rest != "" {
		return c.proc, rest, onlyHere
	}
	if rest, ok := within(at, "/sys"); ok && c.sys != nil && rest != "" {
		return c.sys, rest, onlyHere
	}
	return c.root, at, inRoot | unix.RESOLVE_NO_XDEV
}

// mask hides paths: directories by an empty one, files by a null device, both
// copied from pause's root.
//
// CVE-2025-31133, CVE-2025-52881, CVE-2016-9962: what is in /proc and /sys is
// opened from the descriptors of these mounts, without links, and on the one
// file system only; a mask that isn't where it should be is an error.
//
// A recipe can't ask what a path is. So it tries a directory first; once that
// is masked, RESOLVE_NO_XDEV keeps the second try from opening it again.
func (c *container) mask() {
	paths := outermost(c.spec.MaskedPaths)
	if len(paths) == 0 {
		return
	}
	from := c.open("masking paths", cwd, "/", onlyDir, 0)
	for _, at := range paths {
		why := "masking " + at
		dir, rest, resolve := c.place(at)
		c.maskBy(why, from, pauseDirmask,
			c.open(why, dir, rest, onlyDir, resolve).Tolerate(unix.ENOENT, unix.ENOTDIR))
		c.maskBy(why, from, pauseNull,
			c.open(why, dir, rest, unix.O_PATH, resolve).Tolerate(unix.ENOENT, unix.ENOTDIR, unix.EXDEV))
	}
}

// maskBy mounts a copy of what pause's root holds at name on target, if target
// was opened. The two duplications make the copy depend on that: they turn a
// copy of target's descriptor, if there is one, into one of pause's root. A
// copy made in vain would cost more than all else here, for when it is closed
// the kernel waits for an RCU grace period.
func (c *container) maskBy(why string, from Arg, name string, target Result) {
	slot := c.Call(why, unix.SYS_FCNTL, target, Int(unix.F_DUPFD_CLOEXEC), Int(3)).Tolerate(unix.EBADF)
	root := c.Call(why, unix.SYS_DUP3, from, slot, Int(unix.O_CLOEXEC)).Tolerate(unix.EBADF)
	mask := c.Call(why, unix.SYS_OPEN_TREE, root, Str(name[1:]), Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).Tolerate(unix.EBADF)
	c.move(why, mask, target).Tolerate(unix.EBADF)
}

// readonly makes paths read-only, with all that is mounted below them.
func (c *container) readonly() {
	masked := outermost(c.spec.MaskedPaths)
	for _, at := range outermost(c.spec.ReadonlyPaths, masked...) {
		why := "making " + at + " read-only"
		dir, rest, resolve := c.place(at)
		target := c.open(why, dir, rest, unix.O_PATH, resolve).Tolerate(unix.ENOENT, unix.ENOTDIR)
		copied := c.Call(why, unix.SYS_OPEN_TREE, target, Str(""),
			Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)).Tolerate(unix.EBADF)
		c.Call(why, unix.SYS_MOUNT_SETATTR, copied, Str(""), Int(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE),
			MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, Int(mountAttrSize)).Tolerate(unix.EBADF)
		c.move(why, copied, target).Tolerate(unix.EBADF)
	}
}
