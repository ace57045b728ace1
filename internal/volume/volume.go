// Package volume makes a pod's volumes on disk and hands them to its
// containers as CRI mounts.
//
// It owns, below its directory, for each pod
//
//	<uid>/volumes/kubernetes.io~<plugin>/<volume>      the volumes
//	<uid>/volume-subpaths/<volume>/<container>/<n>     bind mounts of subPaths
//	<uid>/plugins/kubernetes.io~empty-dir/<volume>     "ready" marks
//	<uid>/containers/<container>/<random>              termination messages
//	<uid>/etc-hosts                                    the pod's /etc/hosts
//
// which is kubelet's layout; other files in <uid> are left alone.
//
// It promises:
//   - Setup is idempotent. Called again it keeps what exists (an emptyDir's
//     content, a tmpfs mounted by an earlier process) and brings the content of
//     configMap, secret, downwardAPI and projected volumes up to date, each
//     volume atomically: a reader sees all of the old files or all of the new.
//   - After kill -9 at any instant, calling Setup or Teardown again completes
//     the work. CleanOrphans removes what pods that are gone left behind.
//   - The content of a volume is hostile. Nothing in it is resolved by path:
//     every step is taken by descriptor without following links, a subPath
//     can't leave its volume, and Teardown never enters a mount (it detaches
//     it), so that it can't delete what a hostPath leads to.
//   - Content of secrets is on tmpfs only, and never in an error or a log.
//
// Calls for different pods may overlap; calls for one pod must not.
//
// Floor: 5, beside podspec, manifest and lifecycle. It imports internal/sys.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/containerd/errdefs"
)

// Source finds the ConfigMaps and Secrets that volumes show. A missing object
// is an error for which k8s.io/apimachinery/pkg/api/errors.IsNotFound is true.
// It must be safe for concurrent use.
type Source interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
}

// Config is what a Manager needs.
type Config struct {
	// Dir holds the pods' directories; it is made when missing, and 0700.
	Dir string
	// Source is where the ConfigMaps and Secrets of a pod are looked for.
	Source func(pod *v1.Pod) Source
	// Allocatable is what the node can give to pods: the size of memory-backed
	// volumes without a limit, and the limits that resourceFieldRef reports.
	Allocatable v1.ResourceList
	// HostsFile is what pods of the host's network get as /etc/hosts; ""
	// means the node's own.
	HostsFile string
	// SELinux says that the kernel enforces SELinux, so that volumes are to be
	// relabelled.
	SELinux bool
	// RecursiveReadOnly says that the runtime can mount recursively read-only.
	RecursiveReadOnly bool

	// Token and TrustBundle serve the sources of projected volumes that only
	// an API can; nil where there is none.
	Token       func(ctx context.Context, pod *v1.Pod, source *v1.ServiceAccountTokenProjection) ([]byte, error)
	TrustBundle func(ctx context.Context, source *v1.ClusterTrustBundleProjection) ([]byte, error)
	// Claim finds the persistent volume behind a persistentVolumeClaim or an
	// ephemeral volume; nil where there is no API.
	Claim func(ctx context.Context, pod *v1.Pod, v *v1.Volume) (*v1.PersistentVolume, error)
}

// Manager makes, refreshes and removes the volumes of pods.
type Manager struct {
	Config
}

// New returns a Manager of the volumes below c.Dir.
func New(c Config) (*Manager, error) {
	if c.HostsFile == "" {
		c.HostsFile = "/etc/hosts"
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of pods: %w", err)
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing the directory of pods to others: %w", err)
	}
	// The runtime names mounts by their real path.
	dir, err := filepath.EvalSymlinks(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolving the directory of pods: %w", err)
	}
	if c.Dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("resolving the directory of pods: %w", err)
	}
	return &Manager{Config: c}, nil
}

// Mounted is a volume that is ready to be mounted into containers.
type Mounted struct {
	// HostPath is where it is; empty for an image volume.
	HostPath string
	// Image is the image an image volume shows; the runtime mounts it.
	Image *v1.ImageVolumeSource
	// ReadOnly volumes are read-only in every container.
	ReadOnly bool
	// Relabel says that the volume is the pod's own and may be relabelled.
	Relabel bool
}

// SetupError says why a volume isn't ready. Its text is that of kubelet's
// FailedMount event.
type SetupError struct {
	Volume string
	Err    error
}

func (e *SetupError) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}
func (e *SetupError) Unwrap() error { return e.Err }

// Reason is the reason of the event.
func (e *SetupError) Reason() string { return "FailedMount" }

// Setup makes the pod's volumes, or refreshes them, and returns them by name.
// Volumes that no container uses are not made. Each volume that fails is a
// *[SetupError] of the joined error; the others are made all the same, so that
// a later call has less to do.
func (m *Manager) Setup(ctx context.Context, pod *v1.Pod) (map[string]Mounted, error) {
	if _, err := m.podDir(pod.UID); err != nil {
		return nil, err
	}
	used := usedVolumes(pod)
	mounted := map[string]Mounted{}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !used[v.Name] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		result, err := m.setup(ctx, pod, v)
		if err != nil {
			errs = append(errs, &SetupError{v.Name, err})
			continue
		}
		mounted[v.Name] = result
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return mounted, nil
}

func (m *Manager) setup(ctx context.Context, pod *v1.Pod, v *v1.Volume) (Mounted, error) {
	switch {
	case v.EmptyDir != nil:
		return m.setupEmptyDir(pod, v)
	case v.HostPath != nil:
		return setupHostPath(v.HostPath)
	case v.ConfigMap != nil:
		files, err := m.configMapFiles(pod, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.DefaultMode, v.ConfigMap.Optional)
		return m.setupFiles(pod, v.Name, "configmap", v1.StorageMediumDefault, files, err)
	case v.Secret != nil:
		files, err := m.secretFiles(pod, v.Secret.SecretName, v.Secret.Items, v.Secret.DefaultMode, v.Secret.Optional)
		return m.setupFiles(pod, v.Name, "secret", v1.StorageMediumMemory, files, err)
	case v.DownwardAPI != nil:
		files, err := m.downwardFiles(pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
		return m.setupFiles(pod, v.Name, "downward-api", v1.StorageMediumMemory, files, err)
	case v.Projected != nil:
		files, err := m.projectedFiles(ctx, pod, v.Projected)
		return m.setupFiles(pod, v.Name, "projected", v1.StorageMediumMemory, files, err)
	case v.Image != nil:
		return Mounted{Image: v.Image, ReadOnly: true}, nil
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		return m.setupClaim(ctx, pod, v)
	}
	return Mounted{}, fmt.Errorf("no volume plugin matched: this type of volume is not supported: %w", errdefs.ErrNotImplemented)
}

// usedVolumes are the volumes that a container mounts or reads its environment
// from.
func usedVolumes(pod *v1.Pod) map[string]bool {
	used := map[string]bool{}
	for c := range podutil.ContainerIter(&pod.Spec, podutil.AllContainers) {
		for _, vm := range c.VolumeMounts {
			used[vm.Name] = true
		}
		for _, vd := range c.VolumeDevices {
			used[vd.Name] = true
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.FileKeyRef != nil {
				used[e.ValueFrom.FileKeyRef.VolumeName] = true
			}
		}
	}
	return used
}

// podDir makes the pod's directory and returns its path.
func (m *Manager) podDir(uid types.UID) (string, error) {
	name, err := checkUID(uid)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(m.Dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// volumeDir makes the directory of a volume of one plugin, without its content.
func (m *Manager) volumeDir(uid types.UID, plugin, name string) (string, error) {
	pod, err := m.podDir(uid)
	if err != nil {
		return "", err
	}
	parent := filepath.Join(pod, "volumes", "kubernetes.io~"+plugin)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// MountOptions is what a container's mounts depend on beside its pod.
type MountOptions struct {
	// Volumes are the pod's, from Setup.
	Volumes map[string]Mounted
	// Env is the container's environment by name, for subPathExpr.
	Env map[string]string
	// PodIPs are the pod's addresses; without any, a pod with a network of its
	// own gets no /etc/hosts.
	PodIPs []string
	// Hostname and Domain are the pod's names in its /etc/hosts.
	Hostname, Domain string
	// Images are the runtime's references of the image volumes, by volume.
	Images map[string]*runtimeapi.ImageSpec
}
