package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	v1 "k8s.io/api/core/v1"

	"github.com/containerd/errdefs"
)

// setupClaim makes ready what a persistent volume is on this machine.
func (m *Manager) setupClaim(ctx context.Context, pod *v1.Pod, v *v1.Volume) (Mounted, error) {
	if m.Claim == nil {
		return Mounted{}, fmt.Errorf("no API server has persistent volume claims here: %w", errdefs.ErrNotImplemented)
	}
	pv, err := m.Claim(ctx, pod, v)
	if err != nil {
		return Mounted{}, err
	}
	if mode := pv.Spec.VolumeMode; mode != nil && *mode != v1.PersistentVolumeFilesystem {
		return Mounted{}, fmt.Errorf("PV %s: spec.volumeMode %s is not supported: %w", pv.Name, *mode, errdefs.ErrNotImplemented)
	}
	var mounted Mounted
	switch {
	case pv.Spec.HostPath != nil:
		mounted, err = setupHostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		mounted, err = setupLocal(pod, pv.Spec.Local)
	default:
		err = fmt.Errorf("no volume plugin matched: its type is not supported, hostPath and local are: %w", errdefs.ErrNotImplemented)
	}
	if err != nil {
		return Mounted{}, fmt.Errorf("PV %s: %w", pv.Name, err)
	}
	mounted.ReadOnly = v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
	return mounted, nil
}

// setupLocal checks that a local volume's directory is there. Its path is the
// cluster administrator's own choice and is followed as it is; its content is
// not.
func setupLocal(pod *v1.Pod, source *v1.LocalVolumeSource) (Mounted, error) {
	info, err := os.Stat(source.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Mounted{}, fmt.Errorf("path %q does not exist", source.Path)
	case err != nil:
		return Mounted{}, err
	case !info.IsDir():
		return Mounted{}, fmt.Errorf("local.path %q is not a directory; other local volumes are not supported: %w", source.Path, errdefs.ErrNotImplemented)
	}
	root, err := os.Open(source.Path)
	if err != nil {
		return Mounted{}, err
	}
	defer root.Close()
	if err := setOwnership(root, fsGroup(pod), false); err != nil {
		return Mounted{}, err
	}
	return Mounted{HostPath: source.Path, Relabel: true}, nil
}
