// Package device makes what a container sees in /dev: a tmpfs with its nodes,
// a pseudo-terminal file system of its own, terminals in it.
//
// Everything is made in detached mounts, by descriptor, before any process of
// the container exists; nothing of the container's image is touched. Calls
// are independent of each other and safe for concurrent use.
//
// Floor 1. It imports internal/sys.
package device

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// Node is a device as a container shall have it.
type Node struct {
	Path         string // in the container
	HostPath     string // "" if it isn't one of the host's
	Type         byte   // 'c' or 'b'
	Major, Minor uint32
	Mode         os.FileMode // permission bits
	UID, GID     uint32      // in the container
	Access       string      // of "rwm", for the container's device rules
}

// Options says what a container's /dev has beside the standard nodes.
type Options struct {
	// Nodes to add. Those outside /dev are not Make's: see Node.Mount.
	Nodes []Node
	// UIDMap and GIDMap are the container's user namespace, none for the
	// host's.
	UIDMap, GIDMap []syscall.SysProcIDMap
	// Console makes the file that a terminal's /dev/console is mounted on.
	Console bool
}

// standard are the nodes every container has.
var standard = []Node{
	{Path: "/dev/null", Type: 'c', Major: 1, Minor: 3, Mode: 0o666},
	{Path: "/dev/zero", Type: 'c', Major: 1, Minor: 5, Mode: 0o666},
	{Path: "/dev/full", Type: 'c', Major: 1, Minor: 7, Mode: 0o666},
	{Path: "/dev/random", Type: 'c', Major: 1, Minor: 8, Mode: 0o666},
	{Path: "/dev/urandom", Type: 'c', Major: 1, Minor: 9, Mode: 0o666},
	{Path: "/dev/tty", Type: 'c', Major: 5, Minor: 0, Mode: 0o666},
}

var links = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
	{"pts/ptmx", "ptmx"}, {"/proc/kcore", "core"},
}

// reserved are the names in /dev that are the runtime's own.
var reserved = map[string]bool{
	"pts": true, "shm": true, "mqueue": true, "console": true, "ptmx": true,
	"fd": true, "stdin": true, "stdout": true, "stderr": true, "core": true,
}

// Make makes a container's /dev as a detached tmpfs, of 64 MB as everywhere:
// nodes, links and the mount points pts, shm and mqueue.
func Make(o Options) (_ *os.File, err error) {
	dev, err := sys.NewMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME,
		sys.Option{Key: "mode", Value: "755"}, sys.Option{Key: "size", Value: "65536k"})
	if err != nil {
		return nil, fmt.Errorf("making /dev: %w", err)
	}
	defer func() {
		if err != nil {
			dev.Close()
			err = fmt.Errorf("making /dev: %w", err)
		}
	}()
	m := maker{fd: int(dev.Fd()), Options: o}
	if err := m.own(m.fd, "", 0, 0); err != nil {
		return nil, err
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := m.mkdir(m.fd, name); err != nil {
			return nil, err
		}
	}
	for _, l := range links {
		if err := unix.Symlinkat(l[0], m.fd, l[1]); err != nil {
			return nil, &os.PathError{Op: "symlinkat", Path: "/dev/" + l[1], Err: err}
		}
	}
	for _, n := range standard {
		if err := m.node(n); err != nil {
			return nil, err
		}
	}
	for _, n := range o.Nodes {
		if InDev(n.Path) {
			if err := m.node(n); err != nil {
				return nil, err
			}
		}
	}
	if o.Console {
		if err := unix.Mknodat(m.fd, "console", unix.S_IFREG|0o600, 0); err != nil {
			return nil, &os.PathError{Op: "mknodat", Path: "/dev/console", Err: err}
		}
		if err := m.own(m.fd, "console", 0, 0); err != nil {
			return nil, err
		}
	}
	return dev, nil
}

// InDev says whether a path in the container is below /dev.
func InDev(p string) bool { return strings.HasPrefix(path.Clean(p), "/dev/") }

// maker fills one file system.
type maker struct {
	fd int // its root
	Options
}

// node makes a node below /dev, replacing one that is there.
func (m *maker) node(n Node) error {
	if err := n.check(); err != nil {
		return err
	}
	rel := strings.TrimPrefix(path.Clean(n.Path), "/dev/")
	parts := strings.Split(rel, "/")
	if reserved[parts[0]] {
		return fmt.Errorf("device %s: the name is taken: %w", n.Path, errdefs.ErrInvalidArgument)
	}
	dir := m.fd
	for _, part := range parts[:len(parts)-1] {
		if err := m.mkdir(dir, part); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		next, err := unix.Openat(dir, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "openat", Path: n.Path, Err: err}
		}
		defer unix.Close(next)
		dir = next
	}
	return m.mknod(dir, parts[len(parts)-1], n)
}

func (m *maker) mknod(dir int, name string, n Node) error {
	mode := uint32(n.Mode.Perm())
	if n.Type == 'b' {
		mode |= unix.S_IFBLK
	} else {
		mode |= unix.S_IFCHR
	}
	rdev := int(unix.Mkdev(n.Major, n.Minor))
	err := unix.Mknodat(dir, name, mode, rdev)
	if errors.Is(err, unix.EEXIST) {
		if err = unix.Unlinkat(dir, name, 0); err == nil {
			err = unix.Mknodat(dir, name, mode, rdev)
		}
	}
	if err != nil {
		return &os.PathError{Op: "mknodat", Path: n.Path, Err: err}
	}
	// The process's umask took bits away.
	if err := unix.Fchmodat(dir, name, uint32(n.Mode.Perm()), 0); err != nil {
		return &os.PathError{Op: "fchmodat", Path: n.Path, Err: err}
	}
	return m.own(dir, name, n.UID, n.GID)
}

func (m *maker) mkdir(dir int, name string) error {
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return &os.PathError{Op: "mkdirat", Path: "/dev/.../" + name, Err: err}
	}
	return m.own(dir, name, 0, 0)
}

// own gives a file to a user of the container.
func (m *maker) own(dir int, name string, uid, gid uint32) error {
	u, g := mapID(m.UIDMap, uid), mapID(m.GIDMap, gid)
	if u == 0 && g == 0 {
		return nil // as made
	}
	if err := unix.Fchownat(dir, name, u, g, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "fchownat", Path: name, Err: err}
	}
	return nil
}

// mapID finds the host's number of a container's ID; one that isn't mapped
// becomes the container's root.
func mapID(m []syscall.SysProcIDMap, id uint32) int {
	if host, ok := lookupID(m, id); ok {
		return host
	}
	host, _ := lookupID(m, 0)
	return host
}

func lookupID(m []syscall.SysProcIDMap, id uint32) (int, bool) {
	if len(m) == 0 {
		return int(id), true
	}
	for _, r := range m {
		if int64(id) >= int64(r.ContainerID) && int64(id) < int64(r.ContainerID)+int64(r.Size) {
			return r.HostID + int(id) - r.ContainerID, true
		}
	}
	return 0, false
}

// check refuses nonsense.
func (n Node) check() error {
	switch {
	case n.Type != 'c' && n.Type != 'b':
		return fmt.Errorf("device %s: type %q is neither c nor b: %w", n.Path, n.Type, errdefs.ErrInvalidArgument)
	case !path.IsAbs(n.Path) || strings.Contains("/"+n.Path+"/", "/../"):
		return fmt.Errorf("device %q: the path in the container must be absolute and without ..: %w", n.Path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Mount makes a detached mount of the host's node, for a device whose place
// in the container isn't below /dev. Its owner and mode are the host's.
func (n Node) Mount() (_ *os.File, err error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, n.HostPath, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, hostError(n.HostPath, err)
	}
	f := os.NewFile(uintptr(fd), n.HostPath)
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, hostError(n.HostPath, err)
	}
	if now, ok := nodeOf(&st, n.Path, n.Access); !ok || now.Type != n.Type || now.Major != n.Major || now.Minor != n.Minor {
		return nil, fmt.Errorf("device %s: it is no longer the device it was: %w", n.HostPath, errdefs.ErrFailedPrecondition)
	}
	return f, sys.SetMountAttr(f, false, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE})
}

// FromHost finds what the CRI's device names: a node of the host or, for a
// directory, all nodes in it, which keep their names below containerPath.
// access is of "rwm".
func FromHost(hostPath, containerPath, access string) ([]Node, error) {
	if access == "" || strings.Trim(access, "rwm") != "" {
		return nil, fmt.Errorf("device %s: permissions %q: want some of rwm: %w", hostPath, access, errdefs.ErrInvalidArgument)
	}
	if containerPath == "" {
		containerPath = hostPath
	}
	real, err := filepath.EvalSymlinks(hostPath)
	if err != nil {
		return nil, hostError(hostPath, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(real, &st); err != nil {
		return nil, hostError(hostPath, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		nodes, err := walk(real, containerPath, access, nil)
		if err == nil && len(nodes) == 0 {
			err = fmt.Errorf("device %s: no devices in this directory: %w", hostPath, errdefs.ErrNotFound)
		}
		return nodes, err
	}
	n, ok := nodeOf(&st, containerPath, access)
	if !ok {
		return nil, fmt.Errorf("device %s: not a device: %w", hostPath, errdefs.ErrInvalidArgument)
	}
	n.HostPath = real
	return []Node{n}, n.check()
}

func hostError(p string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("device %s: not on this node: %w", p, errdefs.ErrNotFound)
	}
	return fmt.Errorf("device %s: %w", p, err)
}

// All are the host's devices, for a privileged container.
func All() ([]Node, error) {
	skip := func(name string) bool { return reserved[name] || strings.HasPrefix(name, ".") }
	return walk("/dev", "/dev", "rwm", skip)
}

// walk lists the nodes below a directory of the host; what vanishes meanwhile
// is passed over.
func walk(dir, as, access string, skip func(string) bool) ([]Node, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, hostError(dir, err)
	}
	var nodes []Node
	for _, e := range entries {
		if skip != nil && skip(e.Name()) {
			continue
		}
		from, to := dir+"/"+e.Name(), path.Join(as, e.Name())
		if e.IsDir() {
			more, err := walk(from, to, access, nil)
			if err != nil {
				return nil, err
			}
			nodes = append(nodes, more...)
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(from, &st); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, hostError(from, err)
		}
		if n, ok := nodeOf(&st, to, access); ok {
			n.HostPath = from
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

func nodeOf(st *unix.Stat_t, as, access string) (Node, bool) {
	n := Node{
		Path: as, Type: 'c', Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Mode: os.FileMode(st.Mode & 0o777), UID: st.Uid, GID: st.Gid, Access: access,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		n.Type = 'b'
	case unix.S_IFCHR:
	default:
		return Node{}, false
	}
	return n, true
}
