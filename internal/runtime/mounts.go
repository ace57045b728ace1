package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/security/selinux"
	"unipod.dev/unipod/internal/sys"
)

// mountSet is the mounts of one container, prepared by descriptor.
type mountSet struct {
	list    []recipe.Mount
	covered map[string]bool // targets that the request mounts itself
}

func (m *mountSet) close() {
	for _, mnt := range m.list {
		mnt.Source.Close()
	}
}

// prepareMounts opens the source of every mount of the container: what the
// request names and the files every pod has.
func (r *Runtime) prepareMounts(ctx context.Context, c *container, label string) (_ *mountSet, err error) {
	set := &mountSet{covered: map[string]bool{}}
	defer func() {
		if err != nil {
			set.close()
		}
	}()
	var userns *os.File
	if c.sandbox.userNS() {
		if userns, err = c.sandbox.nsFile("user"); err != nil {
			return nil, err
		}
		defer userns.Close()
	}
	wanted := slices.Clone(c.config.Mounts)
	for _, m := range wanted {
		set.covered[path.Clean(m.ContainerPath)] = true
	}
	readonly := c.config.GetLinux().GetSecurityContext().GetReadonlyRootfs()
	var ids []*runtimeapi.IDMapping
	if userns != nil {
		ids = c.sandbox.namespaces().UsernsOptions.Uids
	}
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		if target := "/etc/" + name; !set.covered[target] {
			wanted = append(wanted, &runtimeapi.Mount{
				ContainerPath: target, HostPath: filepath.Join(c.sandbox.dir, name),
				Readonly: readonly, SelinuxRelabel: true, UidMappings: ids,
			})
		}
	}
	// Parents before what lies in them, whatever the request's order.
	slices.SortStableFunc(wanted, func(a, b *runtimeapi.Mount) int {
		return strings.Count(path.Clean(a.ContainerPath), "/") - strings.Count(path.Clean(b.ContainerPath), "/")
	})
	for _, m := range wanted {
		var src *os.File
		if m.GetImage().GetImage() != "" {
			src, err = r.imageVolume(ctx, c, m)
		} else {
			src, err = hostMount(m, userns, label)
		}
		if err != nil {
			return nil, fmt.Errorf("mounting %s at %s: %w", mountSource(m), m.ContainerPath, err)
		}
		file, err := isFile(src)
		if err != nil {
			src.Close()
			return nil, err
		}
		set.list = append(set.list, recipe.Mount{
			Source: src, Target: path.Clean("/" + m.ContainerPath), File: file,
			Why: fmt.Sprintf("mounting %s at %s", mountSource(m), m.ContainerPath),
		})
	}
	return set, nil
}

func mountSource(m *runtimeapi.Mount) string {
	if img := m.GetImage().GetImage(); img != "" {
		return "image " + img
	}
	return m.HostPath
}

func isFile(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	return st.Mode&unix.S_IFMT != unix.S_IFDIR, nil
}

// hostMount makes the detached mount of a path of the host.
func hostMount(m *runtimeapi.Mount, userns *os.File, label string) (_ *os.File, err error) {
	f, err := os.OpenFile(m.HostPath, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		// As the CRI's other runtimes: docker has always made it.
		if err := os.MkdirAll(m.HostPath, 0o755); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(m.HostPath, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkPropagation(f, m); err != nil {
		return nil, err
	}
	if m.SelinuxRelabel {
		if err := selinux.Relabel(f, label); err != nil {
			return nil, err
		}
	}
	tree, err := sys.CloneTree(f, true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			tree.Close()
		}
	}()
	prop := map[runtimeapi.MountPropagation]uint64{
		runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           unix.MS_PRIVATE,
		runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: unix.MS_SLAVE,
		runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     unix.MS_SHARED,
	}[m.Propagation]
	if err := sys.SetMountAttr(tree, true, &unix.MountAttr{Propagation: prop}); err != nil {
		return nil, fmt.Errorf("propagation %s: %w", m.Propagation, err)
	}
	if len(m.UidMappings) > 0 && userns != nil {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
		if err := sys.SetMountAttr(tree, false, &attr); err != nil {
			return nil, fmt.Errorf("the file system can't map owners into the pod's user namespace: %w", err)
		}
	}
	return tree, setMountOptions(tree, m)
}

var mountOptions = map[string]uint64{
	"ro":          unix.MOUNT_ATTR_RDONLY,
	"nosuid":      unix.MOUNT_ATTR_NOSUID,
	"nodev":       unix.MOUNT_ATTR_NODEV,
	"noexec":      unix.MOUNT_ATTR_NOEXEC,
	"noatime":     unix.MOUNT_ATTR_NOATIME,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
}

func setMountOptions(tree *os.File, m *runtimeapi.Mount) error {
	attr := unix.MountAttr{}
	for _, o := range m.MountOptions {
		flag, ok := mountOptions[o]
		if !ok {
			return invalid("mount_options: %q is not supported", o)
		}
		attr.Attr_set |= flag
		if flag == unix.MOUNT_ATTR_NOATIME {
			attr.Attr_clr |= unix.MOUNT_ATTR__ATIME
		}
	}
	if m.Readonly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if attr.Attr_set == 0 {
		return nil
	}
	return sys.SetMountAttr(tree, m.RecursiveReadOnly, &attr)
}

// checkPropagation refuses what could not work: mounts travel only between
// mounts that are shared (or, towards the container, slaves).
func checkPropagation(f *os.File, m *runtimeapi.Mount) error {
	if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	shared, slave, err := peerGroup(f)
	if err != nil {
		return err
	}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !shared {
			return fmt.Errorf("path %q is on a mount that is not a shared mount", m.HostPath)
		}
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !shared && !slave {
			return fmt.Errorf("path %q is on a mount that is not a shared or slave mount", m.HostPath)
		}
	default:
		return invalid("unknown propagation %d", m.Propagation)
	}
	return nil
}

// peerGroup tells how the mount that holds f propagates.
func peerGroup(f *os.File) (shared, slave bool, err error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return false, false, err
	}
	id := ""
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id = strings.TrimSpace(v)
		}
	}
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, false, err
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		for _, opt := range fields[6:] {
			if opt == "-" {
				break
			}
			shared = shared || strings.HasPrefix(opt, "shared:")
			slave = slave || strings.HasPrefix(opt, "master:")
		}
		return shared, slave, nil
	}
	return false, false, fmt.Errorf("the mount of %s is not in the mount table: %w", f.Name(), errors.Join(lines.Err(), unix.ENOENT))
}

// tryImageVolumes mounts the container's image volumes and lets them go: what
// is wrong with them is an error of its creation, and from then on their
// images are held.
func (r *Runtime) tryImageVolumes(ctx context.Context, c *container) error {
	for _, m := range c.config.Mounts {
		if m.GetImage().GetImage() == "" {
			continue
		}
		tree, err := r.imageVolume(ctx, c, m)
		if err != nil {
			return fmt.Errorf("mounting %s at %s: %w", mountSource(m), m.ContainerPath, err)
		}
		tree.Close()
	}
	return nil
}

// imageVolume mounts an image read-only, as KEP-4639 has it.
func (r *Runtime) imageVolume(ctx context.Context, c *container, m *runtimeapi.Mount) (*os.File, error) {
	ref := m.Image.ImageRef
	if ref == "" { // recorded by a node that didn't write it down
		img, err := r.cfg.Images.Get(ctx, m.Image.Image)
		if err != nil {
			return nil, err
		}
		ref = img.ID
	}
	lower, err := r.cfg.Images.Layers(ctx, ref, c.id)
	if err != nil {
		return nil, err
	}
	if len(lower) == 0 {
		return nil, fmt.Errorf("image %s has no layers", m.Image.Image)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(lower) == 1 {
		// Overlay wants two layers at least; an empty one changes nothing.
		empty := filepath.Join(c.layer, "empty")
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return nil, err
		}
		lower = append(lower, empty)
	}
	for _, dir := range lower {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	tree, err := mountOverlay(r.cfg.Run, unix.MOUNT_ATTR_RDONLY, files, nil)
	if err != nil {
		return nil, err
	}
	if m.ImageSubPath != "" {
		sub, err := subTree(tree, m.ImageSubPath, r.cfg.Run)
		tree.Close()
		if err != nil {
			return nil, fmt.Errorf("image_sub_path %q: %w", m.ImageSubPath, err)
		}
		tree = sub
	}
	if err := setMountOptions(tree, &runtimeapi.Mount{Readonly: true, MountOptions: m.MountOptions}); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// subTree returns the part of a tree below path, as a mount. The tree is
// attached meanwhile, below tmp: of one that isn't, the kernel copies no part
// (before Linux 6.15).
func subTree(tree *os.File, path, tmp string) (*os.File, error) {
	dir, err := os.MkdirTemp(tmp, ".image-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if err := sys.MoveMount(tree, at); err != nil {
		return nil, err
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	f, err := sys.OpenInRoot(tree, path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sub, err := sys.CloneTree(f, false)
	if err != nil {
		return nil, err
	}
	// Where the host's mounts are shared it became one of them.
	if err := sys.SetMountAttr(sub, false, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}
