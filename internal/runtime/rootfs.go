package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
	// lowerdir+ takes one layer at a time, so that their number isn't bounded
	// by the length of an option (Linux 6.8).
	var plus []sys.Option
	for _, l := range o.lower {
		plus = append(plus, sys.Option{Key: "lowerdir+", Value: sys.ProcPath(l)})
	}
	m, err := sys.NewMount("overlay", 0, append(plus, options...)...)
	if !errors.Is(err, unix.EINVAL) {
		return m, err
	}
	old, oerr := o.mountOld(tmp, options)
	if oerr != nil {
		return nil, errors.Join(err, oerr)
	}
	return old, nil
}

// mountOld mounts with mount(2) on a private directory and detaches the
// result, for kernels without lowerdir+.
func (o *overlay) mountOld(tmp string, options []sys.Option) (*os.File, error) {
	var lower []string
	for _, l := range o.lower {
		lower = append(lower, sys.ProcPath(l))
	}
	data := "lowerdir=" + strings.Join(lower, ":")
	for _, op := range options {
		data += "," + op.Key
		if op.Value != "" {
			data += "=" + op.Value
		}
	}
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d layers are more than this kernel's overlay takes (Linux 6.8 takes any number)", len(lower))
	}
	dir, err := os.MkdirTemp(tmp, ".overlay-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	if err := unix.Mount("overlay", dir, "overlay", 0, data); err != nil {
		return nil, &os.PathError{Op: "mount overlay", Path: dir, Err: err}
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return sys.CloneTree(f, false)
}
