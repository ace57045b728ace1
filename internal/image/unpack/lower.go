package unpack

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lower is a stack of layer directories, topmost first, seen as overlayfs
// would merge them.
type lower []int

// find opens name (a cleaned path; symbolic links are not followed) with
// O_PATH and says what it is. ENOENT if no layer has it or an upper one hides
// it.
func (l lower) find(name string) (int, *unix.Stat_t, error) {
	stack, owned := []int(l), false
	release := func() {
		if owned {
			for _, fd := range stack {
				unix.Close(fd)
			}
		}
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		next, st, err := descend(stack, part)
		release()
		if err != nil {
			return -1, nil, err
		}
		stack, owned = next, true
		if i == len(parts)-1 {
			for _, fd := range stack[1:] {
				unix.Close(fd)
			}
			return stack[0], st, nil
		}
		if !isDir(st) {
			release()
			return -1, nil, unix.ENOENT
		}
	}
	return -1, nil, unix.ENOENT
}

// descend opens part in every directory of the stack that contributes to the
// merged directory; a file is a stack of one.
func descend(stack []int, part string) (next []int, first *unix.Stat_t, err error) {
	defer func() {
		if err != nil {
			for _, fd := range next {
				unix.Close(fd)
			}
			next = nil
		}
	}()
	for _, dir := range stack {
		fd, err := unix.Openat(dir, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return next, nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return next, nil, err
		}
		if isWhiteout(&st) || first != nil && !isDir(&st) {
			unix.Close(fd)
			break
		}
		next = append(next, fd)
		if first == nil {
			first = &st
		}
		if !isDir(&st) || isOpaque(fd) {
			break
		}
	}
	if first == nil {
		return next, nil, unix.ENOENT
	}
	return next, first, nil
}

func isOpaque(fd int) bool {
	var b [1]byte
	n, err := unix.Getxattr(procPath(fd), opaqueXattr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// rootNames lists the names in the merged root directory.
func (l lower) rootNames() ([]string, error) {
	var names []string
	seen := make(map[string]bool)
	for _, dir := range l {
		fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "layer")
		entries, err := f.Readdirnames(-1)
		f.Close()
		if err != nil {
			return nil, err
		}
		for _, n := range entries {
			if seen[n] {
				continue
			}
			seen[n] = true
			st, err := lstat(dir, n)
			if err != nil {
				return nil, err
			}
			if !isWhiteout(st) {
				names = append(names, n)
			}
		}
	}
	return names, nil
}

// readMeta reads the metadata of the file behind an O_PATH descriptor.
func readMeta(fd int, st *unix.Stat_t) (meta, error) {
	m := meta{mode: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid), mtime: st.Mtim}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return m, nil
	}
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX and XATTR_SIZE_MAX
	n, err := unix.Listxattr(procPath(fd), buf)
	if errors.Is(err, unix.ENOTSUP) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		val := make([]byte, 64<<10)
		vn, err := unix.Getxattr(procPath(fd), name, val)
		if err != nil {
			return m, err
		}
		if m.xattrs == nil {
			m.xattrs = make(map[string]string)
		}
		m.xattrs[name] = string(val[:vn])
	}
	return m, nil
}
