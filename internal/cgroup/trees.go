package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

const mountpoint = "/sys/fs/cgroup"

// tree is one mounted hierarchy.
type tree struct {
	names []string // its v1 controllers, or "name=systemd"; none for cgroup2
	dir   string   // where it is mounted
	// own: every pod and container has its own group here. Elsewhere the
	// pod's parent group is enough, and saves a directory per container:
	// making one costs 20 to 80 µs.
	own bool
	// enter: pods can't stay where the node is.
	enter bool
}

func (t tree) has(controller string) bool { return slices.Contains(t.names, controller) }

// ownControllers are the v1 controllers that limit or measure each container.
// The others get a group of their own when a limit asks for it.
var ownControllers = []string{"cpu", "cpuacct", "memory", "devices", "pids"}

// findTrees reads which hierarchies are mounted where.
func (h *Hierarchy) findTrees() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	trees, unified, err := parseTrees(f)
	if err != nil {
		return fmt.Errorf("reading mounted cgroups: %w", err)
	}
	if unified == mountpoint {
		h.version, h.unified = 2, tree{dir: mountpoint}
		h.swap = true // see check: v2 tells by the file itself
		return requireKill()
	}
	if len(trees) == 0 {
		return fmt.Errorf("no cgroup hierarchy is mounted below %s: %w", mountpoint, errdefs.ErrFailedPrecondition)
	}
	for _, c := range []string{"memory", "devices"} {
		if !slices.ContainsFunc(trees, func(t tree) bool { return t.has(c) }) {
			return fmt.Errorf("cgroup controller %s is not mounted below %s: %w", c, mountpoint, errdefs.ErrFailedPrecondition)
		}
	}
	self, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for i, t := range trees {
		trees[i].own = slices.ContainsFunc(ownControllers, t.has)
		// Programs that size themselves by their cgroup (the JVM) want to
		// find a cpuset of theirs.
		trees[i].enter = t.has("cpuset") || self[t.names[0]] != "/"
		if t.has("memory") {
			h.swap = exists(t.dir + "/memory.memsw.limit_in_bytes")
		}
	}
	h.trees = trees
	if err := requireKill(); err != nil {
		return err
	}
	if unified == "" {
		m, err := sys.NewMount("cgroup2", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		if err != nil {
			return fmt.Errorf("mounting the cgroup2 hierarchy for killing: %w", err)
		}
		h.unifiedMount, unified = m, sys.ProcPath(m)
	}
	h.unified = tree{dir: unified}
	controllers, err := readFields(unified + "/cgroup.controllers")
	h.hugetlb2 = slices.Contains(controllers, "hugetlb")
	return err
}

// requireKill refuses kernels that can't kill a group.
func requireKill() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	var major, minor int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 5 || (major == 5 && minor < 14) {
		return fmt.Errorf("kernel %s is too old, 5.14 is needed (cgroup.kill): %w", release, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// parseTrees finds the v1 hierarchies mounted right below /sys/fs/cgroup, and
// where the cgroup2 hierarchy is ("" if nowhere), in a mountinfo file
// (proc_pid_mountinfo(5)).
func parseTrees(r io.Reader) (trees []tree, unified string, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 {
			return nil, "", fmt.Errorf("mountinfo line %q: %w", s.Text(), errdefs.ErrInvalidArgument)
		}
		root, where, fstype, super := fields[3], fields[4], tail[0], tail[2]
		if where != mountpoint && path.Dir(where) != mountpoint || root != "/" {
			continue
		}
		switch fstype {
		case "cgroup2":
			if unified != mountpoint {
				unified = where
			}
		case "cgroup":
			var names []string
			for opt := range strings.SplitSeq(super, ",") {
				if !slices.Contains([]string{"rw", "ro", "xattr", "clone_children", "noprefix", "nsdelegate", "favordynmods"}, opt) &&
					!strings.HasPrefix(opt, "release_agent=") {
					names = append(names, opt)
				}
			}
			if len(names) > 0 && !slices.ContainsFunc(trees, func(t tree) bool { return t.has(names[0]) }) {
				trees = append(trees, tree{names: names, dir: where})
			}
		}
	}
	return trees, unified, s.Err()
}

// ensureBase makes the group pods are made in, with every controller its
// children need. The result is remembered.
func (h *Hierarchy) ensureBase(base string) error {
	if h.driver == DriverSystemd {
		return nil // systemd's to make, with every controller: the scope is delegated
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bases[base] {
		return nil
	}
	for _, t := range h.trees {
		var err error
		if t.has("cpuset") {
			err = new(fs.CpusetGroup).ApplyDir(t.dir+base, &cgroups.Resources{}, -1)
		} else {
			err = os.MkdirAll(t.dir+base, 0o755)
		}
		if err != nil {
			return fmt.Errorf("making parent cgroup: %w", err)
		}
	}
	dir := h.unified.dir
	for part := range strings.SplitSeq(strings.TrimPrefix(base, "/"), "/") {
		if h.version == 2 {
			if err := enableControllers(dir); err != nil {
				return err
			}
		}
		dir += "/" + part
		if err := unix.Mkdir(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
	}
	if h.version == 2 {
		if err := enableControllers(dir); err != nil {
			return err
		}
	}
	h.bases[base] = true
	return nil
}

func (h *Hierarchy) forgetBase(base string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.bases, base)
}

// trimBase removes the groups pods were made in when nothing is left in them.
// Only those below our own root are ours. The kernel refuses what isn't empty.
func (h *Hierarchy) trimBase(base string) {
	root, err := cleanParent(h.root)
	if h.driver != DriverCgroupfs || err != nil {
		return
	}
	h.trim.Lock()
	defer h.trim.Unlock()
	for ; strings.HasPrefix(base, root+"/"); base = path.Dir(base) {
		// The unified tree first: on v2 it is the only one, on v1 the last to
		// be made.
		if err := unix.Rmdir(h.unified.dir + base); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
		h.forgetBase(base)
		for _, t := range h.trees {
			unix.Rmdir(t.dir + base)
		}
	}
}

// enableControllers gives the children of a cgroup v2 directory every
// controller it has itself.
func enableControllers(dir string) error {
	have, err := readFields(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	on, err := readFields(dir + "/cgroup.subtree_control")
	if err != nil {
		return err
	}
	var want []string
	for _, c := range have {
		if !slices.Contains(on, c) {
			want = append(want, "+"+c)
		}
	}
	if len(want) == 0 {
		return nil
	}
	file := dir + "/cgroup.subtree_control"
	err = writeFile(file, strings.Join(want, " "))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("enabling %s: the group has processes of its own, move them to a child group first: %w", strings.Join(want, " "), err)
	}
	if err == nil {
		return nil
	}
	// One that can't be enabled (cpu while there are real-time tasks) must
	// not cost the others; a limit that needs it fails by name later.
	for _, c := range want {
		if e := writeFile(file, c); e == nil {
			err = nil
		}
	}
	return err
}

func readFields(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	return strings.Fields(string(b)), err
}

// writeFile writes values to a kernel's file, each by a call of its own.
func writeFile(file string, values ...string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	for _, value := range values {
		if _, err := unix.Write(fd, []byte(value)); err != nil {
			return &os.PathError{Op: fmt.Sprintf("writing %q to", value), Path: file, Err: err}
		}
	}
	return nil
}
