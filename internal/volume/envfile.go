package volume

import (
	"fmt"

	"golang.org/x/sys/unix"
	envutil "k8s.io/kubernetes/pkg/kubelet/util/env"

	"github.com/containerd/errdefs"

	"unipod.dev/unipod/internal/sys"
)

// maxEnvFile is the largest environment file that is read, in bytes (KEP-3721).
const maxEnvFile = 64 << 10

// EnvFile finds key in the environment file at path in the volume, for
// fileKeyRef; ok says whether it is there with a value. Links in the volume are
// followed as a process confined to it would. An error doesn't quote the file.
func EnvFile(volume Mounted, path, key string) (value string, ok bool, err error) {
	if volume.HostPath == "" {
		return "", false, fmt.Errorf("the volume has no files on the host: %w", errdefs.ErrInvalidArgument)
	}
	root, err := openDir(volume.HostPath)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	// A pipe must not make the node wait.
	f, err := sys.OpenInRoot(root, path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", false, err
	case !info.Mode().IsRegular():
		return "", false, fmt.Errorf("environment file %q is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	case info.Size() > maxEnvFile:
		return "", false, fmt.Errorf("environment file %q is larger than %d bytes: %w", path, maxEnvFile, errdefs.ErrInvalidArgument)
	}
	// kubelet's parser takes a path; this one leads to just this file.
	value, err = envutil.ParseEnv(sys.ProcPath(f), key)
	if err != nil {
		return "", false, fmt.Errorf("environment file %q: %w", path, err)
	}
	return value, value != "", nil
}
