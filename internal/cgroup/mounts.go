package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// Mount is a detached mount and where it goes in a container.
type Mount struct {
	Source *os.File
	Target string
	Why    string
}

// PrivateNamespace says whether a container should get a cgroup namespace of
// its own: on v2 unless it is privileged. It must be made (unshare(2)) by the
// container's first process once it is in its group: CLONE_NEWCGROUP would
// take the group of the process that clones.
func (h *Hierarchy) PrivateNamespace(privileged bool) bool {
	return h.version == 2 && !privileged
}

// ContainerMounts makes the container's view of its own group, to be mounted
// in this order: on v2 one mount on /sys/fs/cgroup, on v1 a tmpfs there with
// a mount for each hierarchy. They are read-only unless privileged. On v2 a
// privileged container sees the whole hierarchy. The caller closes the
// sources.
func (g *Group) ContainerMounts(privileged bool) (mounts []Mount, err error) {
	defer func() {
		if err != nil {
			for _, m := range mounts {
				m.Source.Close()
			}
			mounts, err = nil, fmt.Errorf("the container's view of cgroup %s: %w", g.path, err)
		}
	}()
	const why = "mounting the container's cgroup at "
	if g.h.version == 2 {
		dir := g.h.unified.dir
		if !privileged {
			dir += g.path
		}
		m, err := cloneDir(dir, !privileged)
		if err != nil {
			return nil, err
		}
		return []Mount{{m, mountpoint, why + mountpoint}}, nil
	}
	top, err := g.h.topDir()
	if err != nil {
		return nil, err
	}
	mounts = []Mount{{top, mountpoint, "mounting a tmpfs for cgroups at " + mountpoint}}
	for _, t := range g.h.trees {
		dir := t.dir + g.path
		if !t.own && !exists(dir) {
			if !t.enter {
				continue
			}
			dir = t.dir + g.base
		}
		m, err := cloneDir(dir, !privileged)
		if err != nil {
			return mounts, err
		}
		target := mountpoint + "/" + path.Base(t.dir)
		mounts = append(mounts, Mount{m, target, why + target})
	}
	return mounts, nil
}

// topDir makes the tmpfs that holds v1's mount points, and a link for each
// controller that shares its hierarchy with another (cpu -> cpu,cpuacct).
func (h *Hierarchy) topDir() (_ *os.File, err error) {
	m, err := sys.NewMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC,
		sys.Option{Key: "mode", Value: "755"}, sys.Option{Key: "size", Value: "64k"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	fd := int(m.Fd())
	for _, t := range h.trees {
		base := path.Base(t.dir)
		if err := unix.Mkdirat(fd, base, 0o755); err != nil {
			return nil, &os.PathError{Op: "mkdirat", Path: base, Err: err}
		}
		for _, name := range t.names {
			if name == base || len(t.names) == 1 {
				continue
			}
			if err := unix.Symlinkat(base, fd, name); err != nil && !errors.Is(err, unix.EEXIST) {
				return nil, &os.PathError{Op: "symlinkat", Path: name, Err: err}
			}
		}
	}
	return m, sys.SetMountAttr(m, false, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// cloneDir makes a detached mount of a directory.
func cloneDir(dir string, readonly bool) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	m := os.NewFile(uintptr(fd), dir)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if readonly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := sys.SetMountAttr(m, false, &attr); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}
