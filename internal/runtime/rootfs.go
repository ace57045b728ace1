package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// mountRootfs mounts the container's root: the image's layers below, its own
// writable layer above, as a detached mount that lives as long as its
// descriptor and the container's mount namespace.
//
// The writable layer is mounted volatile: it ends with the container, so
// nothing of it needs to reach the disk in order.
func (r *Runtime) mountRootfs(ctx context.Context, c *container) (*os.File, error) {
	lower, err := r.cfg.Images.Layers(ctx, c.rec.ImageID, c.id)
	if err != nil {
		return nil, fmt.Errorf("image layers: %w", err)
	}
	// A node killed between mounting and starting left the mark of a volatile
	// mount, which refuses to be mounted twice; what was written is nothing.
	work := filepath.Join(c.layer, "work")
	if err := os.RemoveAll(filepath.Join(work, "work", "incompat")); err != nil {
		return nil, err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	open := func(dir string) (*os.File, error) {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("opening layer: %w", err)
		}
		files = append(files, f)
		return f, nil
	}
	var userns *os.File
	if c.sandbox.userNS() {
		if userns, err = c.sandbox.nsFile("user"); err != nil {
			return nil, err
		}
		defer userns.Close()
	}
	layer := func(dir string) (*os.File, error) {
		f, err := open(dir)
		if err != nil || userns == nil {
			return f, err
		}
		m, err := idmapped(f, userns)
		if err != nil {
			return nil, fmt.Errorf("mapping the image's owners into the pod's user namespace: %w", err)
		}
		files = append(files, m)
		return m, nil
	}
	ov := overlay{label: c.rec.MountLabel}
	for _, dir := range lower {
		f, err := layer(dir)
		if err != nil {
			return nil, err
		}
		ov.lower = append(ov.lower, f)
	}
	// The writable layer is not mapped: overlay makes its work directory as
	// the host's root, whom the mapping doesn't know. Its files have the
	// owners the host sees.
	if ov.top, err = open(c.layer); err != nil {
		return nil, err
	}
	if err := c.dressUpper(ov); err != nil {
		return nil, err
	}
	m, err := ov.mount(r.cfg.Run)
	if err != nil {
		return nil, fmt.Errorf("mounting the container's root file system: %w", err)
	}
	return m, nil
}

// dressUpper gives the top directory, whose owner and mode become the root
// directory's, those the image gives it.
func (c *container) dressUpper(ov overlay) error {
	st := unix.Stat_t{Mode: 0o755}
	if len(ov.lower) > 0 {
		// Through the mapped mount, so the owner is the pod's.
		if err := unix.Fstat(int(ov.lower[0].Fd()), &st); err != nil {
			return &os.PathError{Op: "fstat", Path: ov.lower[0].Name(), Err: err}
		}
	} else if c.sandbox.userNS() {
		u := c.sandbox.namespaces().UsernsOptions
		st.Uid, st.Gid = hostID(u.Uids, 0), hostID(u.Gids, 0)
	}
	upper := filepath.Join(c.layer, "upper")
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return os.Chmod(upper, os.FileMode(st.Mode&0o777))
}

// idmapped returns a detached mount of f that shows owners as userns maps
// them.
func idmapped(f, userns *os.File) (*os.File, error) {
	m, err := sys.CloneTree(f, false)
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := sys.SetMountAttr(m, false, &attr); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// overlay is an overlay mount by descriptors: the names of layers, which may
// hold any character, appear nowhere.
type overlay struct {
	lower []*os.File // topmost first
	top   *os.File   // holds "upper" and "work"
	label string     // SELinux's, "" without
}

func (o *overlay) mount(tmp string) (*os.File, error) {
	options := []sys.Option{
		{Key: "upperdir", Value: sys.ProcPath(o.top) + "/upper"},
		{Key: "workdir", Value: sys.ProcPath(o.top) + "/work"},
		{Key: "index", Value: "off"},
		{Key: "volatile"},
	}
	if o.label != "" {
		options = append(options, sys.Option{Key: "context", Value: o.label})
	}
	return mountOverlay(tmp, 0, o.lower, options)
}

// mountOverlay makes a detached overlay of layers, topmost first.
func mountOverlay(tmp string, attrs int, lower []*os.File, options []sys.Option) (*os.File, error) {
	// lowerdir+ takes one layer at a time, so that their number isn't bounded
	// by the length of an option (Linux 6.8).
	var plus []sys.Option
	for _, l := range lower {
		plus = append(plus, sys.Option{Key: "lowerdir+", Value: sys.ProcPath(l)})
	}
	m, err := sys.NewMount("overlay", attrs, append(plus, options...)...)
	if !errors.Is(err, unix.EINVAL) {
		return m, err
	}
	old, oerr := mountOld(tmp, attrs, lower, options)
	if oerr != nil {
		return nil, errors.Join(err, oerr)
	}
	return old, nil
}

// mountOld is for kernels without lowerdir+. It mounts with mount(2) in a
// place of its own and detaches the result.
func mountOld(tmp string, attrs int, lower []*os.File, options []sys.Option) (_ *os.File, err error) {
	dir, err := os.MkdirTemp(tmp, ".overlay-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	// Nothing that happens here is to show elsewhere; and the overlay must
	// not be shared, or it could not become a root directory (pivot_root(2)).
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700,size=64k"); err != nil {
		return nil, &os.PathError{Op: "mount tmpfs", Path: dir, Err: err}
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) // with all that is below it
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return nil, &os.PathError{Op: "making private", Path: dir, Err: err}
	}
	data := "lowerdir="
	for i, l := range lower {
		place, err := placeLayer(l, fmt.Sprintf("%s/%d", dir, i))
		if err != nil {
			return nil, err
		}
		if i > 0 {
			data += ":"
		}
		data += place
	}
	for _, op := range options {
		data += "," + op.Key
		if op.Value != "" {
			data += "=" + op.Value
		}
	}
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d layers are more than this kernel's overlay takes (Linux 6.8 takes any number)", len(lower))
	}
	merged := dir + "/m"
	if err := os.Mkdir(merged, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		return nil, &os.PathError{Op: "mount overlay", Path: merged, Err: err}
	}
	f, err := os.OpenFile(merged, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := sys.CloneTree(f, false)
	if err != nil {
		return nil, err
	}
	if attrs != 0 {
		if err := sys.SetMountAttr(m, false, &unix.MountAttr{Attr_set: uint64(attrs)}); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// placeLayer gives a layer a path that mount(2) takes. A detached mount (of
// mapped owners) has none before Linux 6.15: it is attached at place.
func placeLayer(l *os.File, place string) (string, error) {
	if err := os.Mkdir(place, 0o700); err != nil {
		return "", err
	}
	err := unix.MoveMount(int(l.Fd()), "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) {
		return sys.ProcPath(l), nil // no mount, but a directory
	}
	if err != nil {
		return "", &os.PathError{Op: "move_mount", Path: place, Err: err}
	}
	return place, nil
}
