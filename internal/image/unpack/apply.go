package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	// metaPrefix marks AUFS' own bookkeeping; only the opaque marker of it
	// means something.
	metaPrefix   = ".wh..wh."
	opaqueMarker = ".wh..wh..opq"

	xattrRecord = "SCHILY.xattr."
	opaqueXattr = "trusted.overlay.opaque"

	// holderXattr marks a placeholder; its value is the index of its link. No
	// archive can set it, and unlike an inode's number it is never reused.
	holderXattr = "trusted.unipod.link"
)

// Options tell how a layer is applied.
type Options struct {
	// Base says that no layer lies below: whiteouts mean nothing then.
	Base bool
}

// Layer is a layer whose stream has been applied and which still waits for
// Finish. It is not safe for concurrent use.
type Layer struct {
	opts Options
	root int // O_PATH descriptor of the directory

	// The parent of the last entry: entries of a directory follow each other.
	lastDir  string
	lastFD   int
	lastOpen bool

	// Directories get their metadata last, when nothing is created in them
	// any more (a default ACL or a setgid bit would be inherited, and the
	// time of modification would be lost). They are known by inode, for
	// several names may lead to one directory.
	dirs    map[uint64]dirMeta
	implied map[uint64]string
	links   []pendingLink // in the order of the archive
	opaque  bool          // the root itself

	buf []byte
}

type dirMeta struct {
	name string
	meta
}

// meta is what a file has besides its data.
type meta struct {
	mode     uint32 // permission bits and set-ID bits
	uid, gid int
	mtime    unix.Timespec
	xattrs   map[string]string
}

type pendingLink struct{ name, target string }

// Apply reads the uncompressed tar stream r to the end of the archive and
// creates its entries below dir, an empty directory. The returned layer must
// be finished or closed.
func Apply(ctx context.Context, dir *os.File, r io.Reader, opts Options) (*Layer, error) {
	root, err := unix.Openat(int(dir.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	l := &Layer{
		opts:    opts,
		root:    root,
		dirs:    make(map[uint64]dirMeta),
		implied: make(map[uint64]string),
		buf:     make([]byte, 128<<10),
	}
	if err := l.apply(ctx, tar.NewReader(r)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close gives up a layer that will not be finished. It is harmless afterwards.
func (l *Layer) Close() {
	l.forgetParent()
	if l.root >= 0 {
		unix.Close(l.root)
		l.root = -1
	}
}

func (l *Layer) apply(ctx context.Context, tr *tar.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return invalid("the layer is not a valid archive: %w", err)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := l.entry(ctx, hdr, tr); err != nil {
			return blame(fmt.Errorf("layer entry %q: %w", hdr.Name, err))
		}
	}
}

// clean makes a name of an archive relative to the root. Absolute names are
// common and harmless; one that climbs out of the root is an attack.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", invalid("the name contains a NUL byte")
	}
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", invalid("the path %q leads out of the root file system", name)
	}
	return c, nil
}

func (l *Layer) entry(ctx context.Context, hdr *tar.Header, data io.Reader) error {
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		// The root directory keeps what every container expects of it,
		// 0755 root:root, whatever the builder's temporary directory was.
		return nil
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if bookkeeping(dir) || bookkeeping(base) && base != opaqueMarker {
		return nil
	}
	m, err := metaOf(hdr)
	if err != nil {
		return err
	}
	parent, err := l.parent(dir)
	if err != nil {
		return err
	}
	switch {
	case base == opaqueMarker:
		return l.markOpaque(parent, dir)
	case strings.HasPrefix(base, whiteoutPrefix):
		return l.whiteout(parent, base[len(whiteoutPrefix):])
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return l.directory(parent, name, base, m)
	case tar.TypeReg, '\x00': // the second is how pre-POSIX archives spell it
		return l.regular(ctx, parent, base, m, hdr.Size, data)
	case tar.TypeSymlink:
		return l.symlink(parent, base, m, hdr.Linkname)
	case tar.TypeLink:
		return l.link(parent, name, base, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return l.node(parent, base, m, hdr)
	}
	return invalid("unsupported type %q in the archive", hdr.Typeflag)
}

func metaOf(hdr *tar.Header) (meta, error) {
	if hdr.Uid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid < 0 || hdr.Gid >= math.MaxUint32 {
		return meta{}, invalid("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	m := meta{mode: uint32(hdr.Mode) & 0o7777, uid: hdr.Uid, gid: hdr.Gid}
	if sec := hdr.ModTime.Unix(); sec > 0 {
		m.mtime = unix.Timespec{Sec: sec, Nsec: int64(hdr.ModTime.Nanosecond())}
	}
	for k, v := range hdr.PAXRecords {
		if attr, ok := strings.CutPrefix(k, xattrRecord); ok && !strings.HasPrefix(attr, "trusted.") {
			if m.xattrs == nil {
				m.xattrs = make(map[string]string)
			}
			m.xattrs[attr] = v
		}
	}
	return m, nil
}

// create runs mk, which must fail with EEXIST if the name is taken; then what
// has the name is removed, for a later entry replaces an earlier one.
func (l *Layer) create(parent int, base string, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	l.forgetLast(parent)
	if err := removeAll(parent, base); err != nil {
		return err
	}
	return mk()
}

func (l *Layer) regular(ctx context.Context, parent int, base string, m meta, size int64, data io.Reader) error {
	var fd int
	err := l.create(parent, base, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := l.fill(ctx, fd, size, data); err != nil {
		return err
	}
	return setRegular(fd, m)
}

func setRegular(fd int, m meta) error {
	if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
		return fmt.Errorf("setting owner %d:%d: %w", m.uid, m.gid, err)
	}
	// After the owner: chown clears the set-ID bits and file capabilities.
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return fmt.Errorf("setting mode: %w", err)
	}
	for k, v := range m.xattrs {
		if err := xattrError(k, unix.Fsetxattr(fd, k, []byte(v), 0)); err != nil {
			return err
		}
	}
	return futimens(fd, m.mtime)
}

// xattrError forgives what a file system cannot store, as containerd does.
func xattrError(name string, err error) error {
	if err == nil || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return fmt.Errorf("setting extended attribute %s: %w", name, err)
}

func (l *Layer) symlink(parent int, base string, m meta, target string) error {
	err := l.create(parent, base, func() error { return unix.Symlinkat(target, parent, base) })
	if err != nil {
		return err
	}
	return setSpecial(parent, base, m, true)
}

func (l *Layer) node(parent int, base string, m meta, hdr *tar.Header) error {
	mode := m.mode & 0o777
	var dev uint64
	switch hdr.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFIFO
	}
	if hdr.Typeflag != tar.TypeFifo {
		// Linux has 12 bits of major and 20 of minor numbers.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return invalid("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		dev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	err := l.create(parent, base, func() error { return unix.Mknodat(parent, base, mode, int(dev)) })
	if err != nil {
		return err
	}
	return setSpecial(parent, base, m, false)
}

// setSpecial gives metadata to a file that cannot be opened for it. Nobody but
// us can reach the directory, so the name still means what was just created.
func setSpecial(parent int, base string, m meta, symlink bool) error {
	if err := unix.Fchownat(parent, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting owner %d:%d: %w", m.uid, m.gid, err)
	}
	if !symlink {
		if err := unix.Fchmodat(parent, base, m.mode, 0); err != nil {
			return fmt.Errorf("setting mode: %w", err)
		}
	}
	if len(m.xattrs) > 0 {
		fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for k, v := range m.xattrs {
			err := unix.Setxattr(procPath(fd), k, []byte(v), 0)
			if errors.Is(err, unix.EPERM) && strings.HasPrefix(k, "user.") {
				continue // only files and directories may have those
			}
			if err := xattrError(k, err); err != nil {
				return err
			}
		}
	}
	ts := []unix.Timespec{m.mtime, m.mtime}
	if err := unix.UtimesNanoAt(parent, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting times: %w", err)
	}
	return nil
}

func (l *Layer) directory(parent int, name, base string, m meta) error {
	err := unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		err = l.replaceByDirectory(parent, base)
	}
	if err != nil {
		return err
	}
	st, err := lstat(parent, base)
	if err != nil {
		return err
	}
	delete(l.implied, st.Ino)
	l.dirs[st.Ino] = dirMeta{name: name, meta: m}
	return nil
}

// replaceByDirectory makes base a directory whatever it is. A whiteout becomes
// an opaque directory: what lay below stays hidden.
func (l *Layer) replaceByDirectory(parent int, base string) error {
	st, err := lstat(parent, base)
	if err != nil {
		return err
	}
	if isDir(st) {
		return nil
	}
	l.forgetLast(parent)
	if err := unix.Unlinkat(parent, base, 0); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, base, 0o700); err != nil {
		return err
	}
	if isWhiteout(st) {
		return setOpaque(parent, base)
	}
	return nil
}

// link makes a hard link, or, when its target is not in this layer, an empty
// file in its place until Finish can look below.
func (l *Layer) link(parent int, name, base, linkname string) error {
	target, err := clean(linkname)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	tdir, tbase := path.Split(target)
	tfd, err := openInRoot(l.root, strings.TrimSuffix(tdir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer unix.Close(tfd)
		var tst, st *unix.Stat_t
		tst, err = lstat(tfd, tbase)
		if err == nil && isWhiteout(tst) {
			err = unix.ENOENT
		}
		if err == nil {
			if st, err = lstat(parent, base); err == nil && st.Ino == tst.Ino {
				return nil // a link to itself
			}
			if i, ok := l.holder(tfd, tbase); ok {
				return l.placeholder(parent, name, base, l.links[i].target)
			}
			err = l.create(parent, base, func() error { return unix.Linkat(tfd, tbase, parent, base, 0) })
			if err != nil {
				return fmt.Errorf("hard link to %q: %w", linkname, err)
			}
			return nil
		}
	}
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("hard link to %q: %w", linkname, err)
	}
	if l.opts.Base {
		return fmt.Errorf("hard link to %q, which does not exist: %w", linkname, unix.ENOENT)
	}
	return l.placeholder(parent, name, base, target)
}

func (l *Layer) placeholder(parent int, name, base, target string) error {
	err := l.create(parent, base, func() error {
		fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fsetxattr(fd, holderXattr, strconv.AppendInt(nil, int64(len(l.links)), 10), 0)
	})
	if err != nil {
		return err
	}
	l.links = append(l.links, pendingLink{name, target})
	return nil
}

// holder says which link the file is a placeholder for, if it is one.
func (l *Layer) holder(parent int, base string) (int, bool) {
	if len(l.links) == 0 {
		return 0, false
	}
	fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var b [20]byte
	n, err := unix.Getxattr(procPath(fd), holderXattr, b[:])
	if err != nil {
		return 0, false
	}
	i, err := strconv.Atoi(string(b[:n]))
	return i, err == nil && i < len(l.links)
}

// bookkeeping says whether a path is AUFS' own or lies below such.
func bookkeeping(name string) bool {
	return strings.HasPrefix(name, metaPrefix) || strings.Contains(name, "/"+metaPrefix)
}
