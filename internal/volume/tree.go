package volume

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// within is how a step into a hostile tree is taken: one name, no link, no
// mount.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openat2 names what it opens by its last name only: the path of every step
// would make the depth of a hostile tree count twice.
func openat2(dir *os.File, name string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		}
		return nil, &os.PathError{Op: "openat2", Path: path.Join(dir.Name(), name), Err: err}
	}
}

// walk visits everything below dir, a directory before its content, without
// following links or entering mounts. It holds one descriptor at a time however
// deep the tree is: it goes back up by "..", and checks that it arrived where
// it came from. Entries that vanish on the way are passed over.
func walk(dir *os.File, visit func(parent *os.File, name string, st *unix.Stat_t) error) error {
	type level struct {
		names    []string
		dev, ino uint64
	}
	enter := func(f *os.File) (level, error) {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return level{}, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
		}
		names, err := readNames(f)
		return level{names, uint64(st.Dev), st.Ino}, err
	}
	cur, err := openat2(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, within)
	if err != nil {
		return err
	}
	defer func() { cur.Close() }()
	top, err := enter(cur)
	if err != nil {
		return err
	}
	stack := []level{top}
	for {
		here := &stack[len(stack)-1]
		if len(here.names) == 0 {
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				return nil
			}
			up, err := openat2(cur, "..", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
			if err != nil {
				return err
			}
			cur.Close()
			cur = up
			back := stack[len(stack)-1]
			var st unix.Stat_t
			if err := unix.Fstat(int(cur.Fd()), &st); err != nil || uint64(st.Dev) != back.dev || st.Ino != back.ino {
				return fmt.Errorf("%s: the tree was moved while it was read", dir.Name())
			}
			continue
		}
		name := here.names[0]
		here.names = here.names[1:]
		var st unix.Stat_t
		if err := unix.Fstatat(int(cur.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return &os.PathError{Op: "fstatat", Path: path.Join(cur.Name(), name), Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := visit(cur, name, &st); err != nil {
				return err
			}
			continue
		}
		child, err := openat2(cur, name, unix.O_RDONLY|unix.O_DIRECTORY, within)
		switch {
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			continue // a mount, or no longer what it was
		case err != nil:
			return err
		}
		if err := visit(cur, name, &st); err != nil {
			child.Close()
			return err
		}
		below, err := enter(child)
		cur.Close()
		cur = child
		if err != nil {
			return err
		}
		stack = append(stack, below)
	}
}

// setOwnership gives a volume to the group gid, as kubelet does for fsGroup:
// the group owns everything and may read, write (unless readOnly) and enter,
// and new files inherit it.
func setOwnership(root *os.File, gid *int64, readOnly bool) error {
	if gid == nil {
		return nil
	}
	mask := uint32(0o660)
	if readOnly {
		mask = 0o440
	}
	own := func(f *os.File, st *unix.Stat_t) error {
		if err := unix.Fchownat(int(f.Fd()), "", -1, int(*gid), unix.AT_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "fchownat", Path: f.Name(), Err: err}
		}
		bits := mask
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			return nil
		case unix.S_IFDIR:
			bits |= unix.S_ISGID | 0o110
		}
		// The descriptor may be O_PATH, which fchmod refuses.
		if err := unix.Fchmodat(unix.AT_FDCWD, sys.ProcPath(f), st.Mode&0o7777|bits, 0); err != nil {
			return &os.PathError{Op: "fchmodat", Path: f.Name(), Err: err}
		}
		return nil
	}
	err := walk(root, func(parent *os.File, name string, _ *unix.Stat_t) error {
		f, err := openat2(parent, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
		if err != nil {
			return err
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
		}
		return own(f, &st)
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: root.Name(), Err: err}
	}
	return own(root, &st)
}

// removeAll removes name below dir with everything in it. It follows no link,
// enters no mount (it detaches them: what is mounted is somebody else's) and
// needs a bounded number of descriptors however deep the tree is.
func removeAll(dir *os.File, name string) error {
	return (&remover{}).remove(dir, name, 0)
}

const (
	// maxDepth is how deep remove descends before it moves a directory to the
	// top of the tree instead, to be removed from there.
	maxDepth = 100
	// maxTries bounds what a process that keeps writing can make us repeat.
	maxTries = 1000
)

type remover struct {
	top   *os.File
	moved []string // names in top
	count int
}

func (r *remover) remove(parent *os.File, name string, depth int) error {
	fd := int(parent.Fd())
	for range maxTries {
		err := unix.Unlinkat(fd, name, 0)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EBUSY):
			if err := detach(parent, name); err != nil {
				return err
			}
			continue
		case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
			return &os.PathError{Op: "unlinkat", Path: path.Join(parent.Name(), name), Err: err}
		}
		child, err := openat2(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, within)
		switch {
		case errors.Is(err, unix.EXDEV):
			if err := detach(parent, name); err != nil {
				return err
			}
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return err
		}
		if depth == 0 {
			r.top = child
		}
		err = r.empty(child, depth)
		child.Close()
		if err != nil {
			return err
		}
		err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY):
			return &os.PathError{Op: "unlinkat", Path: path.Join(parent.Name(), name), Err: err}
		}
	}
	return &os.PathError{Op: "remove", Path: path.Join(parent.Name(), name), Err: unix.EBUSY}
}

func (r *remover) empty(dir *os.File, depth int) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if depth == maxDepth {
			r.count++
			up := "..rm-" + strconv.Itoa(r.count)
			if err := unix.Renameat(int(dir.Fd()), name, int(r.top.Fd()), up); err == nil {
				r.moved = append(r.moved, up)
				continue
			}
		}
		if err := r.remove(dir, name, depth+1); err != nil {
			return err
		}
	}
	for depth == 0 && len(r.moved) > 0 {
		next := r.moved[len(r.moved)-1]
		r.moved = r.moved[:len(r.moved)-1]
		if err := r.remove(dir, next, 1); err != nil {
			return err
		}
	}
	return nil
}

// detach takes away the mount at name. The descriptor holds the mount itself,
// so that nothing swapped in meanwhile is unmounted in its stead.
func detach(parent *os.File, name string) error {
	mnt, err := openat2(parent, name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer mnt.Close()
	root, err := isMountRoot(mnt)
	if err != nil {
		return err
	}
	if !root {
		return &os.PathError{Op: "unlinkat", Path: path.Join(parent.Name(), name), Err: unix.EBUSY}
	}
	if err := unix.Unmount(sys.ProcPath(mnt), unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "umount2", Path: path.Join(parent.Name(), name), Err: err}
	}
	return nil
}
