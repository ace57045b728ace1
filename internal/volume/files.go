package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/securitycontext"

	"github.com/containerd/errdefs"
)

// file is one file of a volume whose content Kubernetes provides.
type file struct {
	data []byte
	mode uint32
	uid  *int64 // nil: root
}

var errNoDefaultMode = errors.New("no defaultMode used, not even the default value for it")

func (m *Manager) configMapFiles(pod *v1.Pod, name string, items []v1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	cm, err := m.Source(pod).ConfigMap(pod.Namespace, name)
	if err != nil {
		if !apierrors.IsNotFound(err) || !isTrue(optional) {
			return nil, err
		}
		cm = &v1.ConfigMap{}
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for key, text := range cm.Data {
		data[key] = []byte(text)
	}
	for key, bytes := range cm.BinaryData {
		data[key] = bytes
	}
	return project(data, items, mode, optional, "configmap references non-existent config key: %s")
}

func (m *Manager) secretFiles(pod *v1.Pod, name string, items []v1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	secret, err := m.Source(pod).Secret(pod.Namespace, name)
	if err != nil {
		if !apierrors.IsNotFound(err) || !isTrue(optional) {
			return nil, err
		}
		secret = &v1.Secret{}
	}
	return project(secret.Data, items, mode, optional, "references non-existent secret key: %s")
}

// project lays out all keys, or those that items name.
func project(data map[string][]byte, items []v1.KeyToPath, defaultMode *int32, optional *bool, missing string) (map[string]file, error) {
	if defaultMode == nil {
		return nil, errNoDefaultMode
	}
	files := make(map[string]file, len(data))
	if len(items) == 0 {
		for key, content := range data {
			files[key] = file{data: content, mode: uint32(*defaultMode)}
		}
		return files, nil
	}
	for _, item := range items {
		content, ok := data[item.Key]
		if !ok {
			if isTrue(optional) {
				continue
			}
			return nil, fmt.Errorf(missing, item.Key)
		}
		files[item.Path] = file{data: content, mode: uint32(valueOr(item.Mode, *defaultMode))}
	}
	return files, nil
}

func (m *Manager) downwardFiles(pod *v1.Pod, items []v1.DownwardAPIVolumeFile, defaultMode *int32) (map[string]file, error) {
	if defaultMode == nil {
		return nil, errNoDefaultMode
	}
	files := make(map[string]file, len(items))
	var errs []error
	for _, item := range items {
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = fieldpath.ExtractFieldPathAsString(pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = resource.ExtractResourceValueByContainerNameAndNodeAllocatable(item.ResourceFieldRef, pod, item.ResourceFieldRef.ContainerName, m.Allocatable)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		files[filepath.Clean(item.Path)] = file{data: []byte(text), mode: uint32(valueOr(item.Mode, *defaultMode))}
	}
	return files, errors.Join(errs...)
}

// projectedFiles merges the sources; a later one replaces an earlier one's
// file of the same path.
func (m *Manager) projectedFiles(ctx context.Context, pod *v1.Pod, source *v1.ProjectedVolumeSource) (map[string]file, error) {
	if source.DefaultMode == nil {
		return nil, errNoDefaultMode
	}
	files := map[string]file{}
	var errs []error
	for _, s := range source.Sources {
		part, err := m.projection(ctx, pod, s, source.DefaultMode)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for path, f := range part {
			files[path] = f
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return files, nil
}

func (m *Manager) projection(ctx context.Context, pod *v1.Pod, s v1.VolumeProjection, mode *int32) (map[string]file, error) {
	switch {
	case s.Secret != nil:
		return m.secretFiles(pod, s.Secret.Name, s.Secret.Items, mode, s.Secret.Optional)
	case s.ConfigMap != nil:
		return m.configMapFiles(pod, s.ConfigMap.Name, s.ConfigMap.Items, mode, s.ConfigMap.Optional)
	case s.DownwardAPI != nil:
		return m.downwardFiles(pod, s.DownwardAPI.Items, mode)
	case s.ServiceAccountToken != nil:
		if m.Token == nil {
			return nil, fmt.Errorf("no API server issues service account tokens here: %w", errdefs.ErrNotImplemented)
		}
		data, err := m.Token(ctx, pod, s.ServiceAccountToken)
		return map[string]file{s.ServiceAccountToken.Path: credential(pod, data, *mode)}, err
	case s.ClusterTrustBundle != nil:
		if m.TrustBundle == nil {
			return nil, fmt.Errorf("no API server has cluster trust bundles here: %w", errdefs.ErrNotImplemented)
		}
		data, err := m.TrustBundle(ctx, s.ClusterTrustBundle)
		return map[string]file{s.ClusterTrustBundle.Path: credential(pod, data, *mode)}, err
	}
	return nil, fmt.Errorf("this source of a projected volume is not supported: %w", errdefs.ErrNotImplemented)
}

// credential is readable by the pod's user alone when it has one; with fsGroup,
// setOwnership adds the group.
func credential(pod *v1.Pod, data []byte, mode int32) file {
	uid := podUser(pod)
	if uid != nil || fsGroup(pod) != nil {
		mode = 0o600
	}
	return file{data: data, mode: uint32(mode), uid: uid}
}

// podUser is the user that all containers are told to run as, or nil.
func podUser(pod *v1.Pod) *int64 {
	var uid *int64
	for c := range podutil.ContainerIter(&pod.Spec, podutil.AllContainers) {
		user, ok := securitycontext.DetermineEffectiveRunAsUser(pod, c)
		if !ok || uid != nil && *uid != *user {
			return nil
		}
		uid = user
	}
	return uid
}

// setupFiles makes or refreshes a volume that holds files. Collecting them
// comes first: when that failed (err), what is there stays as it is.
func (m *Manager) setupFiles(pod *v1.Pod, name, plugin string, medium v1.StorageMedium, files map[string]file, err error) (Mounted, error) {
	if err != nil {
		return Mounted{}, err
	}
	dir, err := m.volumeDir(pod.UID, plugin, name)
	if err != nil {
		return Mounted{}, err
	}
	if medium == v1.StorageMediumMemory {
		if _, err := mountTmpfs(dir, 0); err != nil {
			return Mounted{}, err
		}
	}
	root, err := openDir(dir)
	if err != nil {
		return Mounted{}, err
	}
	defer root.Close()
	if medium == v1.StorageMediumDefault {
		if err := root.Chmod(0o777); err != nil {
			return Mounted{}, err
		}
	}
	if err := makeNestedMountPoints(root, name, pod); err != nil {
		return Mounted{}, fmt.Errorf("unable to create nested volume mountpoints: %w", err)
	}
	if err := writeFiles(root, files, fsGroup(pod)); err != nil {
		return Mounted{}, err
	}
	return Mounted{HostPath: dir, ReadOnly: true, Relabel: true}, nil
}

func isTrue(b *bool) bool { return b != nil && *b }

func valueOr[T any](p *T, other T) T {
	if p == nil {
		return other
	}
	return *p
}
