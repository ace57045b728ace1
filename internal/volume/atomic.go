package volume

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// The names kubelet gives to the link that is switched and to its successor.
// Every name that starts with ".." is ours.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// writeFiles makes the visible content of the directory root exactly files, in
// kubelet's way (https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter):
//
//	..2026_11_23_15_04_05.abcd/   the files
//	..data -> ..2026_…            replaced by rename: the atomic step
//	key    -> ..data/key          what containers see
//
// Files that are there with the same content are left alone, so that nothing
// changes (and no watch fires) when nothing changed.
func writeFiles(root *os.File, files map[string]file, gid *int64) error {
	files, err := cleanPaths(files)
	if err != nil {
		return err
	}
	current, err := currentData(root)
	if err != nil {
		return err
	}
	if current == "" || !sameFiles(root, current, files) {
		if current, err = writeData(root, files, gid); err != nil {
			return err
		}
	}
	if err := linkVisible(root, files); err != nil {
		return err
	}
	return removeStale(root, current)
}

// cleanPaths refuses what could leave the directory or take one of our names.
func cleanPaths(files map[string]file) (map[string]file, error) {
	clean := make(map[string]file, len(files))
	for name, f := range files {
		parts := strings.Split(name, "/")
		cleaned := path.Clean(name)
		switch {
		case name == "", cleaned == ".":
			return nil, errors.New("invalid path: must not be empty")
		case path.IsAbs(name):
			return nil, fmt.Errorf("invalid path: must be relative path: %s", name)
		case len(name) > unix.PathMax:
			return nil, fmt.Errorf("invalid path: must be less than or equal to %d characters", unix.PathMax)
		case slices.Contains(parts, ".."):
			return nil, fmt.Errorf("invalid path: must not contain '..': %s", name)
		case strings.HasPrefix(cleaned, ".."):
			return nil, fmt.Errorf("invalid path: must not start with '..': %s", name)
		case slices.ContainsFunc(parts, func(p string) bool { return len(p) > unix.NAME_MAX }):
			return nil, fmt.Errorf("invalid path: filenames must be less than or equal to %d characters", unix.NAME_MAX)
		}
		clean[cleaned] = f
	}
	return clean, nil
}

// currentData is the directory that ..data names, "" if none or not ours.
func currentData(root *os.File) (string, error) {
	target, err := readlink(root, dataLink)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", nil
	case errors.Is(err, unix.EINVAL):
		// Not a link: somebody else's doing, and in the way of ours.
		return "", removeAll(root, dataLink)
	case err != nil:
		return "", err
	}
	if !strings.HasPrefix(target, "..") || strings.Contains(target, "/") || target == ".." || target == dataLink {
		return "", nil
	}
	return target, nil
}

// sameFiles says whether the directory holds just these files. Anything that
// can't be read plainly counts as different.
func sameFiles(root *os.File, dir string, files map[string]file) bool {
	data, err := sys.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer data.Close()
	for name, f := range files {
		if !sameContent(data, name, f.data) {
			return false
		}
	}
	count := 0
	err = walk(data, func(_ *os.File, _ string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			count++
		}
		return nil
	})
	return err == nil && count == len(files)
}

func sameContent(dir *os.File, name string, want []byte) bool {
	f, err := sys.OpenBeneath(dir, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(want)) {
		return false
	}
	got, err := io.ReadAll(io.LimitReader(f, int64(len(want))+1))
	return err == nil && bytes.Equal(got, want)
}

// writeData writes the files to a new directory and points ..data at it. What
// it leaves behind on failure is removed by the next call's removeStale.
func writeData(root *os.File, files map[string]file, gid *int64) (string, error) {
	name := time.Now().UTC().Format("..2006_01_02_15_04_05.") + rand.Text()[:10]
	if err := unix.Mkdirat(int(root.Fd()), name, 0o755); err != nil {
		return "", &os.PathError{Op: "mkdirat", Path: root.Name(), Err: err}
	}
	data, err := sys.OpenBeneath(root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer data.Close()
	if err := data.Chmod(0o755); err != nil {
		return "", err
	}
	for p, f := range files {
		if err := writeFile(data, p, f); err != nil {
			return "", err
		}
	}
	if err := setOwnership(root, gid, true); err != nil {
		return "", err
	}
	fd := int(root.Fd())
	if err := removeAll(root, newDataLink); err != nil {
		return "", err
	}
	if err := unix.Symlinkat(name, fd, newDataLink); err != nil {
		return "", &os.PathError{Op: "symlinkat", Path: newDataLink, Err: err}
	}
	if err := unix.Renameat(fd, newDataLink, fd, dataLink); err != nil {
		return "", &os.PathError{Op: "renameat", Path: dataLink, Err: err}
	}
	return name, nil
}

func writeFile(data *os.File, name string, f file) error {
	if dir := path.Dir(name); dir != "." {
		if err := mkdirAll(data, dir, 0o755); err != nil {
			return err
		}
	}
	out, err := sys.OpenBeneath(data, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.Write(f.data); err != nil {
		return err
	}
	if f.uid != nil {
		if err := out.Chown(int(*f.uid), -1); err != nil {
			return err
		}
	}
	// After the chown, which may clear bits; and whatever the umask is.
	if err := unix.Fchmod(int(out.Fd()), f.mode&0o7777); err != nil {
		return &os.PathError{Op: "fchmod", Path: out.Name(), Err: err}
	}
	return out.Close()
}

// mkdirAll makes a directory and its parents below dir, following no link.
func mkdirAll(dir *os.File, name string, mode uint32) error {
	done := ""
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		parent, err := sys.OpenBeneath(dir, done, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(int(parent.Fd()), part, mode)
		parent.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdirat", Path: path.Join(dir.Name(), done, part), Err: err}
		}
		made := err == nil
		done = path.Join(done, part)
		if made {
			f, err := sys.OpenBeneath(dir, done, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			err = unix.Fchmod(int(f.Fd()), mode)
			f.Close()
			if err != nil {
				return &os.PathError{Op: "fchmod", Path: f.Name(), Err: err}
			}
		}
	}
	return nil
}

// linkVisible makes the links that containers see and removes those of files
// that are gone. What isn't such a link (a nested mount point) is left alone.
func linkVisible(root *os.File, files map[string]file) error {
	wanted := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		wanted[first] = true
	}
	fd := int(root.Fd())
	for name := range wanted {
		_, err := readlink(root, name)
		if !errors.Is(err, unix.ENOENT) {
			continue
		}
		if err := unix.Symlinkat(path.Join(dataLink, name), fd, name); err != nil {
			return &os.PathError{Op: "symlinkat", Path: path.Join(root.Name(), name), Err: err}
		}
	}
	names, err := readNames(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		if wanted[name] || strings.HasPrefix(name, "..") {
			continue
		}
		if target, err := readlink(root, name); err != nil || target != path.Join(dataLink, name) {
			continue
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "unlinkat", Path: path.Join(root.Name(), name), Err: err}
		}
	}
	return nil
}

// removeStale removes the data directories that ..data doesn't name.
func removeStale(root *os.File, current string) error {
	names, err := readNames(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "..") || name == dataLink || name == current {
			continue
		}
		if err := removeAll(root, name); err != nil {
			return err
		}
	}
	return nil
}

func readlink(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlinkat", Path: path.Join(dir.Name(), name), Err: err}
	}
	return string(buf[:n]), nil
}

// readNames lists dir from its start, whatever was read of it before.
func readNames(dir *os.File) ([]string, error) {
	f, err := sys.OpenBeneath(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
