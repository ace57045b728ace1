package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/containerd/errdefs"

	"unipod.dev/unipod/internal/sys"
)

// ours are the entries of a pod's directory that this package makes, in the
// order they are removed: what is bound to a volume before the volume.
var ours = []string{"volume-subpaths", "volumes", "plugins", "containers", "etc-hosts"}

// Teardown removes everything Setup and Mounts made for the pod, with the
// content of its own volumes, and the pod's directory if nothing else is in it.
// Its containers must be gone. It is idempotent.
func (m *Manager) Teardown(ctx context.Context, uid types.UID) error {
	return m.clean(ctx, uid, ours)
}

// TeardownContainer removes the subPath mounts of one container, which must not
// run, so that the next run resolves them anew.
func (m *Manager) TeardownContainer(ctx context.Context, uid types.UID, container string) error {
	volumes, err := os.ReadDir(filepath.Join(m.Dir, string(uid), "volume-subpaths"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var paths []string
	for _, v := range volumes {
		paths = append(paths, filepath.Join("volume-subpaths", v.Name(), container))
	}
	return m.clean(ctx, uid, paths)
}

func (m *Manager) clean(ctx context.Context, uid types.UID, paths []string) error {
	if _, err := checkUID(uid); err != nil {
		return err
	}
	root, err := openDir(m.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	pod, err := sys.OpenBeneath(root, string(uid), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pod.Close()
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := removePath(pod, p); err != nil {
			return fmt.Errorf("removing %s of pod %s: %w", p, uid, err)
		}
	}
	err = unix.Unlinkat(int(root.Fd()), string(uid), unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("removing the directory of pod %s: %w", uid, err)
	}
	return nil
}

func removePath(pod *os.File, p string) error {
	dir, name := filepath.Split(p)
	parent, err := sys.OpenBeneath(pod, filepath.Clean(dir), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	return removeAll(parent, name)
}

// CleanOrphans tears down every pod that has a directory and isn't live. It
// goes on after a failure and returns the errors joined.
func (m *Manager) CleanOrphans(ctx context.Context, live map[types.UID]bool) error {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		uid := types.UID(e.Name())
		if !e.IsDir() || live[uid] {
			continue
		}
		errs = append(errs, m.Teardown(ctx, uid))
	}
	return errors.Join(errs...)
}

// checkUID refuses a UID that can't be the name of a directory.
func checkUID(uid types.UID) (string, error) {
	name := string(uid)
	if name == "" || len(name) > unix.NAME_MAX || slices.Contains([]string{".", ".."}, name) || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("pod UID %q can't name a directory: %w", name, errdefs.ErrInvalidArgument)
	}
	return name, nil
}
