// Package resolve finds where mount targets of a container really are, before
// a recipe makes them.
//
// A recipe follows the symbolic links it finds, inside the root, but it can't
// read one. So it can't make what a dangling link points to, and images have
// those: /etc/resolv.conf is one to a file in /run in many. This package reads
// such links beforehand.
//
// It promises nothing about security, and needn't: what it returns is resolved
// again by the recipe, confined to the root. An image that lies to it, or
// changes meanwhile, only gets its own mount somewhere else.
//
// It owns nothing and keeps nothing. Floor 1, beside recipe.
package resolve

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/sys"
)

// maxLinks is how many symbolic links are followed, as the kernel does.
const maxLinks = 40

// Targets replaces the targets that dangling links of the rootfs lead
// elsewhere by the places these links mean. Mounts are taken in order: what
// the rootfs holds under an earlier one's target doesn't count.
func Targets(rootfs *os.File, mounts []recipe.Mount) error {
	covered := map[string]bool{}
	for i := range mounts {
		at, err := target(rootfs, mounts[i].Target, covered)
		if err != nil {
			return &os.PathError{Op: mounts[i].Why, Path: mounts[i].Target, Err: err}
		}
		mounts[i].Target = at
		covered[at] = true
	}
	return nil
}

func target(rootfs *os.File, at string, covered map[string]bool) (string, error) {
	f, err := sys.OpenInRoot(rootfs, at, unix.O_PATH, 0)
	if err == nil {
		f.Close()
		return path.Clean("/" + at), nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return path.Clean("/" + at), nil // the recipe will say what is wrong
	}
	return walk(rootfs, at, covered)
}

// walk follows every link of a path, and keeps what doesn't exist as it is.
func walk(rootfs *os.File, at string, covered map[string]bool) (string, error) {
	done, rest, links := "/", split(at), 0
	for len(rest) > 0 {
		next := path.Join(done, rest[0]) // of "..", the parent: done has no links
		if covered[next] {
			break
		}
		link, err := readlink(rootfs, next)
		switch {
		case errors.Is(err, unix.EINVAL): // no link
			done, rest = next, rest[1:]
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return path.Join(append([]string{done}, rest...)...), nil
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if path.IsAbs(link) {
			done = "/"
		}
		rest = append(split(link), rest[1:]...)
	}
	return path.Join(append([]string{done}, rest...)...), nil
}

func split(p string) []string {
	var names []string
	for name := range strings.SplitSeq(p, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// readlink reads the link at a path without links before it; EINVAL: it is
// none.
func readlink(rootfs *os.File, at string) (string, error) {
	f, err := sys.OpenBeneath(rootfs, strings.TrimPrefix(at, "/"), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", b)
	if errors.Is(err, unix.ENOENT) { // what readlinkat says of an O_PATH descriptor that is no link
		err = unix.EINVAL
	}
	return string(b[:max(n, 0)]), err
}
