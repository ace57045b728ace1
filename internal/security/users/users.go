// Package users finds out who a container runs as, from the /etc/passwd and
// /etc/group of its image.
//
// The image is hostile: the files are opened within its root, only if they
// are regular files, and read up to a limit. The semantics are those of
// containerd's CRI. Functions are safe for concurrent use.
//
// Floor 1. It imports internal/sys.
package users

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// maxFile bounds /etc/passwd and /etc/group of an image.
const maxFile = 4 << 20

// maxID is the highest user or group ID: -1 means "unchanged" to the kernel.
const maxID = 1<<32 - 2

// User is who a process runs as.
type User struct {
	UID, GID uint32
	// Groups are the supplementary groups that the image's /etc/group gives
	// the user. A pod's supplementalGroupsPolicy Strict leaves them out.
	Groups []uint32
	Name   string // "" if the image doesn't know the user
	Home   string // "/" if the image doesn't know the user
}

// Lookup finds the user that spec names in the image mounted at root: a user
// ID or name, and after a colon perhaps a group ID or name; "" is root. A
// number needs no entry in the image: its group is then 0. A name that the
// image doesn't have is errdefs.ErrNotFound.
func Lookup(root *os.File, spec string) (User, error) {
	u, err := lookup(root, spec)
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", spec, err)
	}
	return u, nil
}

func lookup(root *os.File, spec string) (User, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if spec == "" {
		name = "0"
	}
	if name == "" || hasGroup && (group == "" || strings.Contains(group, ":")) {
		return User{}, fmt.Errorf("want USER or USER:GROUP: %w", errdefs.ErrInvalidArgument)
	}
	uid, numeric, err := parseID(name)
	if err != nil {
		return User{}, err
	}
	out := User{UID: uid, Home: "/"}
	passwd, err := readFile(root, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	entries, err := user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool {
		return numeric && u.Uid == int(uid) || !numeric && u.Name == name
	})
	if err != nil {
		return User{}, fmt.Errorf("the image's /etc/passwd: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	switch {
	case len(entries) > 0:
		e := entries[0]
		if e.Uid < 0 || e.Uid > maxID || e.Gid < 0 || e.Gid > maxID {
			return User{}, fmt.Errorf("the image's /etc/passwd has uid %d, gid %d, out of range: %w", e.Uid, e.Gid, errdefs.ErrInvalidArgument)
		}
		out.UID, out.GID, out.Name = uint32(e.Uid), uint32(e.Gid), e.Name
		if strings.HasPrefix(e.Home, "/") {
			out.Home = e.Home
		}
	case !numeric:
		return User{}, fmt.Errorf("not in the image's /etc/passwd: %w", errdefs.ErrNotFound)
	}
	if err := lookupGroups(root, &out, group); err != nil {
		return User{}, err
	}
	return out, nil
}

// lookupGroups finds the group asked for, if any, and the user's others.
func lookupGroups(root *os.File, u *User, group string) error {
	content, err := readFile(root, "/etc/group")
	if err != nil {
		return err
	}
	gid, numeric, err := parseID(group)
	if group != "" && err != nil {
		return err
	}
	found := group == "" || numeric
	entries, err := user.ParseGroupFilter(bytes.NewReader(content), func(g user.Group) bool {
		return group != "" && !numeric && g.Name == group ||
			u.Name != "" && g.Name != u.Name && slices.Contains(g.List, u.Name)
	})
	if err != nil {
		return fmt.Errorf("the image's /etc/group: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	for _, g := range entries {
		if g.Gid < 0 || g.Gid > maxID {
			return fmt.Errorf("the image's /etc/group has gid %d, out of range: %w", g.Gid, errdefs.ErrInvalidArgument)
		}
		if !found && g.Name == group {
			gid, found = uint32(g.Gid), true
		}
		if u.Name != "" && g.Name != u.Name && slices.Contains(g.List, u.Name) && !slices.Contains(u.Groups, uint32(g.Gid)) {
			u.Groups = append(u.Groups, uint32(g.Gid))
		}
	}
	if !found {
		return fmt.Errorf("group %q is not in the image's /etc/group: %w", group, errdefs.ErrNotFound)
	}
	if group != "" {
		u.GID = gid
	}
	return nil
}

// parseID reads a number; other text is a name.
func parseID(s string) (id uint32, numeric bool, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, false, nil
	}
	if err != nil || n < 0 || n > maxID {
		return 0, false, fmt.Errorf("%s is out of range: %w", s, errdefs.ErrInvalidArgument)
	}
	return uint32(n), true, nil
}

// readFile reads a file of the image; a missing one is empty.
func readFile(root *os.File, name string) ([]byte, error) {
	// O_PATH first: to open a device or a fifo could block, or do something.
	f, err := sys.OpenInRoot(root, name, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the image's %s: %w", name, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("the image's %s: %w", name, err)
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("the image's %s is not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	r, err := os.Open(sys.ProcPath(f))
	if err != nil {
		return nil, fmt.Errorf("the image's %s: %w", name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("the image's %s: %w", name, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("the image's %s is larger than %d bytes: %w", name, maxFile, errdefs.ErrInvalidArgument)
	}
	return b, nil
}
