package volume

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"unipod.dev/unipod/internal/sys"
)

const etcHosts = "/etc/hosts"

// Mounts makes what one run of a container needs of the pod's volumes (subPath
// mounts, /etc/hosts, a termination message file) and returns its mounts in the
// manifest's order. What it made belongs to the pod and goes with Teardown.
func (m *Manager) Mounts(pod *v1.Pod, c *v1.Container, o MountOptions) ([]*runtimeapi.Mount, error) {
	var mounts []*runtimeapi.Mount
	hosts := len(o.PodIPs) > 0 || pod.Spec.HostNetwork
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		hosts = hosts && vm.MountPath != etcHosts
		mount, err := m.mount(pod, c, i, o)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, mount)
	}
	if hosts {
		file, err := m.writeHosts(pod, o)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, &runtimeapi.Mount{HostPath: file, ContainerPath: etcHosts, SelinuxRelabel: m.SELinux})
	}
	if c.TerminationMessagePath != "" {
		file, err := m.newTerminationLog(pod, c)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, &runtimeapi.Mount{HostPath: file, ContainerPath: absolute(c.TerminationMessagePath), SelinuxRelabel: m.SELinux})
	}
	return mounts, nil
}

func (m *Manager) mount(pod *v1.Pod, c *v1.Container, index int, o MountOptions) (*runtimeapi.Mount, error) {
	vm := &c.VolumeMounts[index]
	volume, ok := o.Volumes[vm.Name]
	if !ok {
		return nil, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, c.Name)
	}
	subPath, err := expandSubPath(vm, o.Env)
	if err != nil {
		return nil, err
	}
	propagation, err := propagation(vm.MountPropagation)
	if err != nil {
		return nil, err
	}
	recursive, err := m.recursiveReadOnly(vm)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve recursive read-only mode: %w", err)
	}
	mount := &runtimeapi.Mount{
		ContainerPath:     absolute(vm.MountPath),
		HostPath:          volume.HostPath,
		Readonly:          vm.ReadOnly || volume.ReadOnly,
		RecursiveReadOnly: recursive,
		SelinuxRelabel:    volume.Relabel && m.SELinux,
		Propagation:       propagation,
	}
	switch {
	case volume.Image != nil:
		if mount.Image = o.Images[vm.Name]; mount.Image == nil {
			return nil, fmt.Errorf("cannot find the image of volume %q to mount into container %q", vm.Name, c.Name)
		}
		mount.ImageSubPath = subPath
	case subPath != "":
		mount.HostPath, err = m.mountSubPath(pod.UID, volume.HostPath, subPath, filepath.Join(vm.Name, c.Name, strconv.Itoa(index)))
		if err != nil {
			return nil, &SubPathError{vm.Name, c.Name, err}
		}
	}
	return mount, nil
}

// SubPathError says that a subPath can't be used. Its text is kubelet's and
// tells nothing of the host's file system; the cause is for the node's log.
type SubPathError struct {
	Mount, Container string
	Err              error
}

func (e *SubPathError) Error() string {
	return fmt.Sprintf("failed to prepare subPath for volumeMount %q of container %q", e.Mount, e.Container)
}
func (e *SubPathError) Unwrap() error { return e.Err }

// expandSubPath is the subPath of a mount with the variables of subPathExpr
// filled in; each must have a value.
func expandSubPath(vm *v1.VolumeMount, env map[string]string) (string, error) {
	p := vm.SubPath
	if vm.SubPathExpr != "" {
		missing := map[string]bool{}
		p = expansion.Expand(vm.SubPathExpr, func(name string) string {
			if env[name] == "" {
				missing[name] = true
			}
			return env[name]
		})
		if len(missing) > 0 {
			return "", fmt.Errorf("missing value for %s", strings.Join(slices.Sorted(maps.Keys(missing)), ", "))
		}
	}
	switch {
	case path.IsAbs(p):
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", p)
	}
	return p, nil
}

func propagation(mode *v1.MountPropagationMode) (runtimeapi.MountPropagation, error) {
	switch {
	case mode == nil, *mode == v1.MountPropagationNone:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	case *mode == v1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case *mode == v1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, fmt.Errorf("invalid MountPropagation mode: %q", *mode)
}

func (m *Manager) recursiveReadOnly(vm *v1.VolumeMount) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !vm.ReadOnly {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	}
	if p := vm.MountPropagation; p != nil && *p != v1.MountPropagationNone {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not compatible with propagation %q", vm.Name, *p)
	}
	switch mode := *vm.RecursiveReadOnly; {
	case mode == v1.RecursiveReadOnlyIfPossible:
		return m.RecursiveReadOnly, nil
	case mode == v1.RecursiveReadOnlyEnabled && m.RecursiveReadOnly:
		return true, nil
	case mode == v1.RecursiveReadOnlyEnabled:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", vm.Name)
	default:
		return false, fmt.Errorf("unknown recursive read-only mode %q", mode)
	}
}

// makeNestedMountPoints makes, in a volume that containers see read-only, the
// directories that other volumes are mounted on.
func makeNestedMountPoints(root *os.File, name string, pod *v1.Pod) error {
	for c := range podutil.ContainerIter(&pod.Spec, podutil.AllContainers) {
		var all, mine []string
		for _, vm := range c.VolumeMounts {
			p := absolute(vm.MountPath)
			all = append(all, p)
			if vm.Name == name {
				mine = append(mine, p)
			}
		}
		slices.Sort(all)
		for _, base := range mine {
			var nested []string
			for _, p := range all {
				rel, below := strings.CutPrefix(p, strings.TrimSuffix(base, "/")+"/")
				// A mount point below another nested one is in that one's volume.
				if !below || rel == "" || slices.ContainsFunc(nested, func(n string) bool { return strings.HasPrefix(rel, n+"/") }) {
					continue
				}
				nested = append(nested, rel)
				if err := mkdirAll(root, rel, 0o755); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// mountSubPath binds subPath of the volume at base to a private place, named
// by key, and returns that. The runtime takes a path; a path into the volume
// could be led elsewhere by the pod between now and then, this one can't.
// A missing subPath becomes a directory with the volume's own permissions.
func (m *Manager) mountSubPath(uid types.UID, base, subPath, key string) (string, error) {
	// O_PATH follows links here: a hostPath is taken as it is written.
	root, err := os.OpenFile(base, unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	source, err := openSubPath(root, subPath)
	if err != nil {
		return "", err
	}
	defer source.Close()
	pod, err := m.podDir(uid)
	if err != nil {
		return "", err
	}
	target := filepath.Join(pod, "volume-subpaths", key)
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return "", err
	}
	if there, err := bound(target, source); there || err != nil {
		return target, err
	}
	parent, err := openDir(filepath.Dir(target))
	if err != nil {
		return "", err
	}
	defer parent.Close()
	// What is there is stale (another inode, or left by a crash before the
	// mount was attached): start over.
	if err := removeAll(parent, filepath.Base(target)); err != nil {
		return "", err
	}
	info, err := source.Stat()
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	mnt, err := sys.CloneTree(source, false)
	if err != nil {
		return "", err
	}
	defer mnt.Close()
	return target, attach(mnt, target)
}

// bound says whether target is a mount of just this source.
func bound(target string, source *os.File) (bool, error) {
	f, err := os.OpenFile(target, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	root, err := isMountRoot(f)
	if !root || err != nil {
		return false, err
	}
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := source.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// openSubPath opens a path below root, which must be a directory, making the
// directories that are missing. Links inside the volume are followed; one that
// leads out of it, or is absolute, is refused (EXDEV).
func openSubPath(root *os.File, subPath string) (*os.File, error) {
	const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	f, err := openat2(root, subPath, unix.O_PATH, inside)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "fstat", Path: root.Name(), Err: err}
	}
	mode := st.Mode & 0o7777
	cur, err := openat2(root, ".", unix.O_PATH|unix.O_DIRECTORY, inside)
	if err != nil {
		return nil, err
	}
	defer func() { cur.Close() }()
	done := ""
	for part := range strings.SplitSeq(path.Clean(subPath), "/") {
		done = path.Join(done, part)
		next, err := openat2(root, done, unix.O_PATH, inside)
		if errors.Is(err, unix.ENOENT) {
			next, err = makeDir(cur, part, mode)
		}
		if err != nil {
			return nil, err
		}
		cur.Close()
		cur = next
	}
	return openat2(root, subPath, unix.O_PATH, inside)
}

// makeDir makes one directory and gives it mode whatever the umask is. It is
// entered without following a link the pod may have put in its place.
func makeDir(parent *os.File, name string, mode uint32) (*os.File, error) {
	if err := unix.Mkdirat(int(parent.Fd()), name, mode&0o777); err != nil {
		return nil, &os.PathError{Op: "mkdirat", Path: path.Join(parent.Name(), name), Err: err}
	}
	dir, err := openat2(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, within)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchmod(int(dir.Fd()), mode); err != nil {
		dir.Close()
		return nil, &os.PathError{Op: "fchmod", Path: dir.Name(), Err: err}
	}
	return dir, nil
}

func absolute(p string) string { return path.Clean("/" + p) }
