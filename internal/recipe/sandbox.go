package recipe

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SandboxSpec is what a pod's pause process makes of itself before it serves.
type SandboxSpec struct {
	// Hostname is the pod's; "" keeps the host's (host network).
	Hostname string
	// Sysctls are the pod's, by name as sysctl(8) takes them. Whether they
	// are namespaced is for the caller to check.
	Sysctls map[string]string
	// ShmSize is the size in bytes of the tmpfs that becomes /dev/shm of the
	// pod's containers; 0 makes none.
	ShmSize int64
	// HostIPCShm gives the pod the host's /dev/shm instead.
	HostIPCShm bool
	// UserNS says that pause runs in a user namespace of its own. Its mount
	// namespace then keeps a procfs and a sysfs, without which the kernel
	// lets nobody in that user namespace mount new ones.
	UserNS bool
	// MountLabel is the SELinux label of what is in /dev/shm; "" sets none.
	MountLabel string
	// CgroupProcs are cgroup.procs files, open for writing, of the cgroups
	// to enter.
	CgroupProcs []*os.File
	// OOMScoreAdj is pause's own. The kernel's refusal to lower it is
	// tolerated.
	OOMScoreAdj *int
}

// What pause's root directory holds.
const (
	pauseRootfs  = "/r"       // where a container's child puts its rootfs
	pauseShm     = "/shm"     // the pod's /dev/shm
	pauseNull    = "/null"    // a null device: masks files
	pauseDirmask = "/dirmask" // an empty directory: masks directories
)

// Sandbox returns the recipe by which pause leaves the host: it enters the
// pod's cgroups, sets host name and sysctls, and pivots into an empty,
// read-only root.
func Sandbox(spec SandboxSpec) (*Recipe, error) {
	if spec.ShmSize < 0 {
		return nil, fmt.Errorf("recipe: sandbox: ShmSize: %d is negative", spec.ShmSize)
	}
	if spec.HostIPCShm && spec.ShmSize > 0 {
		return nil, fmt.Errorf("recipe: sandbox: ShmSize: the host's /dev/shm has its own size")
	}
	b := New()
	b.Call("clearing the umask", unix.SYS_UMASK, Int(0))
	b.joinCgroups(spec.CgroupProcs)
	b.keyring()
	// Propagation first: nothing below may be seen in the host's tree.
	b.Call("leaving the host's mounts", unix.SYS_MOUNT_SETATTR, cwd, Str("/"), Int(unix.AT_RECURSIVE),
		MountAttr{Propagation: unix.MS_PRIVATE}, Int(mountAttrSize))
	_, proc := b.newFS("mounting proc for the pod", "proc", safeFS)
	proc.explained(visible("mounting proc for the pod", "/proc"))
	if spec.OOMScoreAdj != nil {
		b.oomScoreAdj(proc, *spec.OOMScoreAdj)
	}
	if spec.Hostname != "" {
		b.Call("setting the host name", unix.SYS_SETHOSTNAME, Str(spec.Hostname), Int(len(spec.Hostname)))
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Sysctls)) {
		file, err := sysctlPath(name)
		if err != nil {
			return nil, fmt.Errorf("recipe: sandbox: Sysctls: %w", err)
		}
		b.procWrite("setting sysctl "+name, proc, "sys/"+file, spec.Sysctls[name])
	}
	b.emptyRoot(spec, proc)
	return b.Recipe()
}

// emptyRoot pivots into a new tmpfs that holds nothing but what the children
// need, and makes it read-only for good: not this mount, which a child could
// change back in its copy, but the file system.
func (b *Builder) emptyRoot(spec SandboxSpec, proc Arg) {
	const why = "making pause's root"
	tmpfs, root := b.newFS(why, "tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC,
		fsOption{"mode", "0755"}, fsOption{"size", "64k"}, fsOption{"nr_inodes", "16"}, fsOption{"source", "pause"})
	for _, dir := range []string{pauseRootfs, "/proc", pauseDirmask} {
		b.mkdir(why, root, dir[1:])
	}

	// Everything that comes from the host is copied while it can be seen.
	var sys, shm, null Arg
	if spec.UserNS {
		// A user namespace can't make devices. The host's null device is
		// borrowed read-only, so that its mode and owner can't be changed.
		null = b.clone(why, "/dev/null")
		b.Call(why, unix.SYS_MOUNT_SETATTR, null, Str(""), Int(unix.AT_EMPTY_PATH),
			MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}, Int(mountAttrSize))
		b.Call(why, unix.SYS_MKNODAT, root, Str(pauseNull[1:]), Int(unix.S_IFREG|0o644), Int(0))
		_, made := b.newFS("mounting sysfs for the pod", "sysfs", unix.MOUNT_ATTR_RDONLY|safeFS)
		sys = made.explained(visible("mounting sysfs for the pod", "/sys"))
		b.mkdir(why, root, "sys")
	} else {
		// CVE-2025-31133: what masks a path is a null device we made
		// ourselves, never the one of an image or a container.
		b.Call(why, unix.SYS_MKNODAT, root, Str(pauseNull[1:]), Int(unix.S_IFCHR|0o666), Int(unix.Mkdev(1, 3)))
	}
	switch {
	case spec.HostIPCShm:
		shm = b.clone("sharing the host's /dev/shm", "/dev/shm")
	case spec.ShmSize > 0:
		_, shm = b.newFS("making the pod's /dev/shm", "tmpfs", safeFS, labelled(spec.MountLabel, fsOption{"mode", "1777"},
			fsOption{"size", strconv.FormatInt(spec.ShmSize, 10)}, fsOption{"source", "shm"})...)
	}
	if shm != nil {
		b.mkdir(why, root, pauseShm[1:])
	}

	b.moveTo(why, root, "/")
	b.pivot("leaving the host's root", root)
	b.moveTo("mounting proc for the pod", proc, "/proc")
	if spec.UserNS {
		b.moveTo("mounting sysfs for the pod", sys, "/sys")
		b.moveTo(why, null, pauseNull)
	}
	if shm != nil {
		b.moveTo("making the pod's /dev/shm", shm, pauseShm)
	}
	b.configure(why, tmpfs, fsOption{"ro", ""})
	b.Call(why, unix.SYS_FSCONFIG, tmpfs, Int(unix.FSCONFIG_CMD_RECONFIGURE), Int(0), Int(0), Int(0))
}

// visible says what the kernel means when it refuses a user namespace a new
// procfs or sysfs: it would show more than the one that is there.
func visible(why, at string) func(unix.Errno) string {
	return func(e unix.Errno) string {
		if e == unix.EPERM {
			return fmt.Sprintf("%s: %v (a user namespace needs a %s on the node without anything mounted over parts of it)", why, e, at)
		}
		return fmt.Sprintf("%s: %v", why, e)
	}
}

// labelled adds the SELinux label of all files to a file system's options.
func labelled(label string, options ...fsOption) []fsOption {
	if label != "" {
		options = append(options, fsOption{"context", label})
	}
	return options
}

// pivot makes an attached mount the root directory and lets go of the old one.
func (b *Builder) pivot(why string, root Arg) {
	b.Call(why, unix.SYS_FCHDIR, root)
	// See NOTES of pivot_root(2): the old root ends up on top of the new one,
	// where "." finds it.
	b.Call(why, unix.SYS_PIVOT_ROOT, Str("."), Str("."))
	b.Call(why, unix.SYS_UMOUNT2, Str("."), Int(unix.MNT_DETACH))
	b.Call(why, unix.SYS_CHDIR, Str("/"))
}

// joinCgroups enters cgroups through their opened cgroup.procs.
func (b *Builder) joinCgroups(procs []*os.File) {
	for i, f := range procs {
		name := "cgroup" + strconv.Itoa(i)
		if f != nil {
			name = "cgroup:" + path.Base(path.Dir(f.Name()))
			if controller := cgroupController(f.Name()); controller != "" {
				name = "cgroup:" + controller
			}
		}
		b.write("joining the cgroup", b.FD(name, f), "0")
	}
}

// cgroupController is the v1 controller a cgroup.procs belongs to.
func cgroupController(file string) string {
	rest, ok := within(file, "/sys/fs/cgroup")
	controller, _, _ := strings.Cut(rest, "/")
	if !ok {
		return ""
	}
	return controller
}

// oomScoreAdj sets the process's own. Lowering it needs CAP_SYS_RESOURCE in
// the initial user namespace, which the node may lack.
func (b *Builder) oomScoreAdj(proc Arg, value int) {
	b.procWrite("setting oom_score_adj", proc, "self/oom_score_adj", strconv.Itoa(value), unix.EACCES, unix.EPERM)
}

// sysctlPath turns a sysctl's name into its path below /proc/sys, by the rules
// of sysctl(8): the first separator decides; if it is a dot, dots separate
// and slashes stand for dots in names ("net.ipv4.conf.eth0/1.forwarding"); if
// it is a slash, the name is a path.
func sysctlPath(name string) (string, error) {
	file := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		file = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	for part := range strings.SplitSeq(file, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("%q is not the name of a sysctl", name)
		}
	}
	return file, nil
}
