package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links the kernel follows in one path.
const maxLinks = 40

// openInRoot opens name as a process whose root directory is root would.
func openInRoot(root int, name string, flags int) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(root, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// parent opens the directory dir inside the root and makes what is missing of
// it. The descriptor belongs to the layer.
func (l *Layer) parent(dir string) (int, error) {
	if dir == "" {
		return l.root, nil
	}
	if l.lastOpen && l.lastDir == dir {
		return l.lastFD, nil
	}
	fd, err := openInRoot(l.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		fd, err = l.makeParents(dir)
	}
	if err != nil {
		return -1, fmt.Errorf("opening directory %q: %w", dir, err)
	}
	l.forgetParent()
	l.lastDir, l.lastFD, l.lastOpen = dir, fd, true
	return fd, nil
}

func (l *Layer) forgetParent() {
	if l.lastOpen {
		unix.Close(l.lastFD)
		l.lastOpen = false
	}
}

// forgetLast makes sure that the next entry resolves its parent afresh, as
// something below is about to be replaced. The descriptor stays open while
// the current entry uses it: it is closed when the next one replaces it.
func (l *Layer) forgetLast(parent int) {
	if l.lastOpen && parent == l.lastFD {
		l.lastDir = "\x00"
		return
	}
	l.forgetParent()
}

// makeParents walks dir component by component, follows symbolic links inside
// the root (dangling ones too, whose target is then made), and makes missing
// directories. It remembers those as implied, under their real path.
func (l *Layer) makeParents(dir string) (int, error) {
	cur, err := unix.Openat(l.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	real, rest, links := "", strings.Split(dir, "/"), 0
	step := func(fd int, at string) { unix.Close(cur); cur, real = fd, at }
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			up := strings.TrimPrefix(path.Dir("/"+real), "/")
			fd, err := openInRoot(l.root, up, unix.O_PATH|unix.O_DIRECTORY)
			if err != nil {
				unix.Close(cur)
				return -1, err
			}
			step(fd, up)
			continue
		}
		fd, err := unix.Openat(cur, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			step(fd, path.Join(real, part))
			continue
		}
		var target string
		if target, err = l.missing(cur, real, part, err); err != nil {
			unix.Close(cur)
			return -1, err
		}
		if target == "" { // it is a directory now
			rest = append([]string{part}, rest...)
			continue
		}
		if links++; links > maxLinks {
			unix.Close(cur)
			return -1, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			fd, err := unix.Openat(l.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				unix.Close(cur)
				return -1, err
			}
			step(fd, "")
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return cur, nil
}

// missing deals with a component that is not a directory: it is made one, or
// the target of the symbolic link is returned.
func (l *Layer) missing(cur int, real, part string, err error) (string, error) {
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mkdirat(cur, part, 0o700); err != nil {
			return "", err
		}
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		st, err := lstat(cur, part)
		if err != nil {
			return "", err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			buf := make([]byte, unix.PathMax)
			n, err := unix.Readlinkat(cur, part, buf)
			return string(buf[:max(n, 0)]), err
		case isWhiteout(st):
			if err := l.replaceByDirectory(cur, part); err != nil {
				return "", err
			}
		default:
			return "", unix.ENOTDIR
		}
	default:
		return "", err
	}
	st, err := lstat(cur, part)
	if err != nil {
		return "", err
	}
	delete(l.dirs, st.Ino) // of a removed directory whose inode came back
	l.implied[st.Ino] = path.Join(real, part)
	return "", nil
}

// removeAll removes base and all below it, never following a link.
func removeAll(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), base)
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		if err == io.EOF || len(names) == 0 {
			break
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := removeAll(fd, n); err != nil {
				return err
			}
		}
		// Entries removed behind the cursor may make it skip others.
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

func lstat(parent int, base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	return &st, nil
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func futimens(fd int, t unix.Timespec) error {
	// An empty path with AT_EMPTY_PATH needs Linux 5.8 or newer for times.
	ts := []unix.Timespec{t, t}
	if err := unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("setting times: %w", err)
	}
	return nil
}

const (
	hole      = 4096     // the block whose absence is worth a hole
	sparseMin = 64 << 10 // below this size holes save nothing
)

var zeros [hole]byte

// fill writes size bytes of data to the new file fd, leaving holes where a
// large file has only zeros.
func (l *Layer) fill(ctx context.Context, fd int, size int64, data io.Reader) error {
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := l.buf[:min(int64(len(l.buf)), size-off)]
		n, err := io.ReadFull(data, b)
		if err != nil {
			return invalid("reading its data: %w", err)
		}
		if size < sparseMin {
			err = pwrite(fd, b, off)
		} else {
			err = writeSparse(fd, b, off)
		}
		if err != nil {
			return err
		}
		off += int64(n)
	}
	if size < sparseMin {
		return nil
	}
	return unix.Ftruncate(fd, size) // the file may end with a hole
}

func writeSparse(fd int, b []byte, off int64) error {
	start := 0 // of data not yet written
	for i := 0; i < len(b); i += hole {
		end := min(i+hole, len(b))
		if !bytes.Equal(b[i:end], zeros[:end-i]) {
			continue
		}
		if err := pwrite(fd, b[start:i], off+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return pwrite(fd, b[start:], off+int64(start))
}

func pwrite(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
