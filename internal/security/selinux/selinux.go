// Package selinux gives containers their SELinux labels and volumes theirs.
// Where the kernel has no SELinux, every function does nothing.
//
// Functions are safe for concurrent use. Which categories are taken is known
// to this process only.
//
// Floor 1. It imports internal/sys.
package selinux

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/sys"
)

// Enabled says whether the kernel labels by SELinux.
func Enabled() bool { return selinux.GetEnabled() }

// level is what MCS levels look like: s0:c1,c2 or s0-s0:c0.c1023.
var level = regexp.MustCompile(`^s\d+(-s\d+)?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)

// Labels works out the label of a container's processes and that of its
// files. Without a level in o two categories of the container's own are
// chosen anew at each call: record the result, and give it back by Release.
func Labels(o *runtimeapi.SELinuxOption) (process, mount string, err error) {
	var options []string
	if o.GetLevel() != "" && !level.MatchString(o.GetLevel()) {
		return "", "", fmt.Errorf("selinux_options.level %q: want something like s0:c1,c2: %w", o.GetLevel(), errdefs.ErrInvalidArgument)
	}
	for _, part := range [][2]string{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()}} {
		if part[1] != "" {
			options = append(options, part[0]+":"+part[1])
		}
	}
	if !Enabled() {
		return "", "", nil
	}
	process, mount, err = label.InitLabels(options)
	if err != nil {
		return "", "", fmt.Errorf("selinux_options: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if process == "" {
		return process, mount, nil
	}
	if err := selinux.SecurityCheckContext(process); err != nil {
		selinux.ReleaseLabel(process)
		return "", "", fmt.Errorf("selinux_options: the policy has no %s: %w: %w", process, errdefs.ErrInvalidArgument, err)
	}
	return process, mount, nil
}

// Reserve takes the categories of a container that lives already, after a
// restart of the node.
func Reserve(process string) {
	// Refused is a label without categories, or with those of another
	// container that lives as well: both are what the pod asked for.
	_ = selinux.ReserveLabelV2(process)
}

// Release gives back a process label's categories.
func Release(process string) { selinux.ReleaseLabel(process) }

// system are directories that a volume's label would make unusable to the
// host.
var system = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root", "/run", "/sbin",
	"/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/usr/bin", "/usr/lib", "/usr/sbin",
}

// Relabel gives the tree at root, opened with O_PATH or else, a label. Links
// are labelled, not followed; other file systems mounted in it are left alone.
func Relabel(root *os.File, to string) error {
	if !Enabled() || to == "" {
		return nil
	}
	name, err := os.Readlink(sys.ProcPath(root))
	if err != nil {
		return fmt.Errorf("relabeling %s: %w", root.Name(), err)
	}
	if slices.Contains(system, name) {
		return fmt.Errorf("relabeling %s: the host needs its labels: %w", name, errdefs.ErrInvalidArgument)
	}
	if err := relabel(root, to); err != nil {
		return fmt.Errorf("relabeling %s: %w", name, err)
	}
	return nil
}

// relabel works by descriptor, so that no one can put a link in the way.
func relabel(f *os.File, to string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		dir, err := os.Open(sys.ProcPath(f))
		if err != nil {
			return err
		}
		defer dir.Close()
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := relabelAt(f, n, st.Dev, to); err != nil {
				return err
			}
		}
	}
	// The tree's top comes last: it tells that all of it is done.
	if err := unix.Setxattr(sys.ProcPath(f), "security.selinux", append([]byte(to), 0), 0); err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil // a file system without labels has one for all of it
		}
		return &os.PathError{Op: "setxattr security.selinux", Path: f.Name(), Err: err}
	}
	return nil
}

func relabelAt(dir *os.File, name string, dev uint64, to string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "openat", Path: dir.Name() + "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Dev != dev {
		return nil
	}
	return relabel(f, to)
}
