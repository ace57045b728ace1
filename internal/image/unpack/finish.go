package unpack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Finish completes the layer with what depends on the layers below it, given
// as their directories from the topmost to the base and all finished. It
// closes the layer in any case.
func (l *Layer) Finish(lowers []*os.File) error {
	defer l.Close()
	l.forgetParent()
	below := make(lower, len(lowers))
	for i, f := range lowers {
		below[i] = int(f.Fd())
	}
	if err := l.settleLinks(below); err != nil {
		return err
	}
	if l.opaque {
		if err := l.hideRoot(below); err != nil {
			return fmt.Errorf("opaque root: %w", err)
		}
	}
	for ino, name := range l.implied {
		if err := l.settleImplied(below, ino, name); err != nil {
			return fmt.Errorf("directory %q: %w", name, err)
		}
	}
	for ino, d := range l.dirs {
		if err := l.setDirectory(ino, d.name, d.meta); err != nil {
			return fmt.Errorf("directory %q: %w", d.name, err)
		}
	}
	return nil
}

// settleImplied gives a directory that the layer did not list the metadata it
// has below: the layer only says that something changed inside it.
func (l *Layer) settleImplied(below lower, ino uint64, name string) error {
	m := meta{mode: 0o755}
	fd, st, err := below.find(name)
	switch {
	case err == nil:
		defer unix.Close(fd)
		if isDir(st) {
			if m, err = readMeta(fd, st); err != nil {
				return err
			}
		}
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	return l.setDirectory(ino, name, m)
}

// setDirectory gives metadata to the directory that had inode ino when name
// was unpacked, unless something else has taken its place since.
func (l *Layer) setDirectory(ino uint64, name string, m meta) error {
	fd, err := openInRoot(l.root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != ino {
		return nil
	}
	return setRegular(fd, m)
}

// settleLinks makes the hard links whose targets lie in lower layers. The
// target is copied up, as overlayfs would have done when the link was made,
// so that both names are one file again.
func (l *Layer) settleLinks(below lower) error {
	made := make(map[string]string) // target -> a name in this layer that is its copy
	for i, p := range l.links {
		if err := l.settleLink(below, i, p, made); err != nil {
			return blame(fmt.Errorf("layer entry %q: hard link to %q: %w", p.name, p.target, err))
		}
	}
	return nil
}

func (l *Layer) settleLink(below lower, i int, p pendingLink, made map[string]string) error {
	dir, base := path.Split(p.name)
	parent, err := openInRoot(l.root, strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // a later entry took the directory's place
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if h, ok := l.holder(parent, base); !ok || h != i {
		return nil // a later entry of the archive took the name
	}
	if err := unix.Unlinkat(parent, base, 0); err != nil {
		return err
	}
	source, ok := made[p.target]
	if !ok {
		source, err = l.copyUp(below, p, parent, base)
		if err != nil {
			return err
		}
		made[p.target] = source
		if source == p.name {
			return nil
		}
	}
	sdir, sbase := path.Split(source)
	sfd, err := openInRoot(l.root, strings.TrimSuffix(sdir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(sfd)
	return unix.Linkat(sfd, sbase, parent, base, 0)
}

// copyUp copies the target of a link from below to its own path, or, where
// this layer has something else there, to the link's name. It returns the name
// of the copy.
func (l *Layer) copyUp(below lower, p pendingLink, parent int, base string) (string, error) {
	src, st, err := below.find(p.target)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return "", fmt.Errorf("it is in no layer of the image: %w", err)
		}
		return "", err
	}
	defer unix.Close(src)
	if isDir(st) {
		return "", fmt.Errorf("it is a directory: %w", unix.EPERM)
	}
	tdir, tbase := path.Split(p.target)
	tfd, err := l.parent(strings.TrimSuffix(tdir, "/"))
	if err != nil {
		return "", err
	}
	if _, err := lstat(tfd, tbase); err == nil {
		return p.name, copyFile(src, st, parent, base)
	} else if !errors.Is(err, unix.ENOENT) {
		return "", err
	}
	return p.target, copyFile(src, st, tfd, tbase)
}

// copyFile copies the file behind the O_PATH descriptor src, not a directory,
// to the new name base.
func copyFile(src int, st *unix.Stat_t, parent int, base string) error {
	m, err := readMeta(src, st)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		in, err := os.Open(procPath(src))
		if err != nil {
			return err
		}
		defer in.Close()
		fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		out := os.NewFile(uintptr(fd), base)
		defer out.Close()
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		return setRegular(fd, m)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, "", buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), parent, base); err != nil {
			return err
		}
		return setSpecial(parent, base, m, true)
	}
	if err := unix.Mknodat(parent, base, st.Mode&(unix.S_IFMT|0o777), int(st.Rdev)); err != nil {
		return err
	}
	return setSpecial(parent, base, m, false)
}

// hideRoot whites out every name the layers below have in the root directory.
func (l *Layer) hideRoot(below lower) error {
	names, err := below.rootNames()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := l.whiteout(l.root, n); err != nil {
			return err
		}
	}
	return nil
}
