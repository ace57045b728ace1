package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"

	"unipod.dev/unipod/internal/sys"
)

// setupEmptyDir makes an emptyDir. The "ready" mark is written last, so that a
// directory left half made by a crash is made again and a finished one is never
// touched again.
func (m *Manager) setupEmptyDir(pod *v1.Pod, v *v1.Volume) (Mounted, error) {
	dir, err := m.volumeDir(pod.UID, "empty-dir", v.Name)
	if err != nil {
		return Mounted{}, err
	}
	mounted := Mounted{HostPath: dir, Relabel: true}
	ready := filepath.Join(m.Dir, string(pod.UID), "plugins", "kubernetes.io~empty-dir", v.Name, "ready")
	_, readyErr := os.Lstat(ready)
	switch medium := v.EmptyDir.Medium; {
	case medium == v1.StorageMediumDefault:
		if readyErr == nil {
			return mounted, nil
		}
	case medium == v1.StorageMediumMemory:
		fresh, err := mountTmpfs(dir, m.memorySize(pod, v.EmptyDir.SizeLimit))
		if err != nil || !fresh && readyErr == nil {
			return mounted, err
		}
	case v1helper.IsHugePageMedium(medium):
		fresh, err := mountHugetlbfs(dir, medium, pod)
		if err != nil || !fresh && readyErr == nil {
			return mounted, err
		}
	default:
		return Mounted{}, fmt.Errorf("unknown storage medium %q", medium)
	}
	root, err := openDir(dir)
	if err != nil {
		return Mounted{}, err
	}
	defer root.Close()
	if v.EmptyDir.Medium == v1.StorageMediumDefault {
		if err := root.Chmod(0o777); err != nil {
			return Mounted{}, err
		}
	}
	if err := setOwnership(root, fsGroup(pod), false); err != nil {
		return Mounted{}, err
	}
	return mounted, markReady(ready)
}

func markReady(mark string) error {
	if err := os.MkdirAll(filepath.Dir(mark), 0o700); err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o600)
}

// memorySize is the size of a memory-backed volume: what the pod may use at
// most, or the volume's own limit when that is less.
func (m *Manager) memorySize(pod *v1.Pod, limit *resource.Quantity) int64 {
	size := m.Allocatable.Memory().Value()
	lower := func(q int64) {
		if q > 0 && (size == 0 || q < size) {
			size = q
		}
	}
	if everyContainerLimitsMemory(pod) {
		limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
		lower(limits.Memory().Value())
	}
	if limit != nil {
		lower(limit.Value())
	}
	return size
}

// everyContainerLimitsMemory says whether the pod as a whole is limited.
func everyContainerLimitsMemory(pod *v1.Pod) bool {
	if pod.Spec.Resources != nil && !pod.Spec.Resources.Limits.Memory().IsZero() {
		return true
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Resources.Limits.Memory().IsZero() {
				return false
			}
		}
	}
	return true
}

// mountTmpfs mounts a tmpfs of size bytes (0: the kernel's default) at dir,
// unless one is there; then it is given this size, which changes when the pod
// is resized in place. fresh says whether it mounted.
func mountTmpfs(dir string, size int64) (fresh bool, err error) {
	there, err := mountedHere(dir, unix.TMPFS_MAGIC)
	if err != nil {
		return false, err
	}
	if there {
		return false, resizeTmpfs(dir, size)
	}
	options := []sys.Option{{Key: "source", Value: "tmpfs"}, {Key: "mode", Value: "1777"}}
	if size > 0 {
		options = append(options, sys.Option{Key: "size", Value: fmt.Sprint(size)})
	}
	// noswap (Linux 6.3) keeps secrets out of swap; older kernels don't know it.
	mnt, err := sys.NewMount("tmpfs", 0, append(options, sys.Option{Key: "noswap"})...)
	if errors.Is(err, unix.EINVAL) {
		mnt, err = sys.NewMount("tmpfs", 0, options...)
	}
	if err != nil {
		return false, err
	}
	defer mnt.Close()
	return true, attach(mnt, dir)
}

// resizeTmpfs changes the size of a mounted tmpfs when it isn't size. The
// kernel refuses a size below what is in it.
func resizeTmpfs(dir string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	blocks := (size + st.Bsize - 1) / st.Bsize
	if size <= 0 || int64(st.Blocks) == blocks {
		return nil
	}
	fd, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "fspick", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetString(fd, "size", fmt.Sprint(size)); err != nil {
		return &os.PathError{Op: "fsconfig", Path: dir, Err: err}
	}
	if err := unix.FsconfigReconfigure(fd); err != nil {
		return fmt.Errorf("resizing the volume from %d to %d bytes: %w", int64(st.Blocks)*st.Bsize, size, err)
	}
	return nil
}

func mountHugetlbfs(dir string, medium v1.StorageMedium, pod *v1.Pod) (fresh bool, err error) {
	size, err := hugePageSize(medium, pod)
	if err != nil {
		return false, err
	}
	if there, err := mountedHere(dir, unix.HUGETLBFS_MAGIC); there || err != nil {
		return false, err
	}
	mnt, err := sys.NewMount("hugetlbfs", 0,
		sys.Option{Key: "pagesize", Value: fmt.Sprint(size.Value())}, sys.Option{Key: "mode", Value: "1777"})
	if err != nil {
		return false, fmt.Errorf("medium %s: %w", medium, err)
	}
	defer mnt.Close()
	return true, attach(mnt, dir)
}

// hugePageSize is the page size that a medium means: the one it names, which
// some container must request, or the only one that is requested.
func hugePageSize(medium v1.StorageMedium, pod *v1.Pod) (resource.Quantity, error) {
	var named, found resource.Quantity
	if medium != v1.StorageMediumHugePages {
		var err error
		if named, err = v1helper.HugePageSizeFromMedium(medium); err != nil {
			return found, err
		}
	}
	var requests []v1.ResourceList
	if pod.Spec.Resources != nil {
		requests = append(requests, pod.Spec.Resources.Requests)
	}
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			requests = append(requests, list[i].Resources.Requests)
		}
	}
	for _, list := range requests {
		for name := range list {
			if !v1helper.IsHugePageResourceName(name) {
				continue
			}
			size, err := v1helper.HugePageSizeFromResourceName(name)
			switch {
			case err != nil:
				return found, err
			case !named.IsZero() && size.Cmp(named) != 0:
			case !found.IsZero() && size.Cmp(found) != 0:
				return found, fmt.Errorf("medium: %s can't be used if container requests multiple huge page sizes", medium)
			default:
				found = size
			}
		}
	}
	if found.IsZero() {
		return found, fmt.Errorf("medium %s: hugePages storage requested, but there is no resource request for huge pages", medium)
	}
	return found, nil
}

// attach moves a detached mount to dir.
func attach(mnt *os.File, dir string) error {
	target, err := os.OpenFile(dir, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer target.Close()
	return sys.MoveMount(mnt, target)
}

// mountedHere says whether dir is the root of a mount of the given type.
func mountedHere(dir string, magic int64) (bool, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if root, err := isMountRoot(f); !root || err != nil {
		return false, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "fstatfs", Path: dir, Err: err}
	}
	if int64(st.Type) != magic {
		return false, fmt.Errorf("%s: something else is mounted there", dir)
	}
	return true, nil
}

// isMountRoot says whether f is the root of a mount (STATX_ATTR_MOUNT_ROOT,
// Linux 5.8).
func isMountRoot(f *os.File) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func openDir(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}
