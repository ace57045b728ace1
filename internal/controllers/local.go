package controllers

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper"
	upstream "k8s.io/kubernetes/pkg/volume"

	"unipod.dev/unipod/internal/volume"
)

// The StorageClass of volumes that are made on demand, and who makes them.
const (
	LocalProvisioner = "unipod.dev/local"
	LocalClass       = "standard"

	isDefaultClass = "storageclass.kubernetes.io/is-default-class"
)

var errNotMounted = errors.New("volumes are mounted by the engine")

// local makes volumes on demand: directories of this machine, as upstream's
// binder wants it of a plugin. Capacity is what was asked for and isn't limited.
// A volume's directory is named after it; nothing else is ever removed.
type local struct {
	dir   string
	node  string
	nodes listers.NodeLister
}

func (*local) Init(upstream.VolumeHost) error { return nil }
func (*local) GetPluginName() string          { return LocalProvisioner }
func (*local) RequiresRemount(*upstream.Spec) bool {
	return false
}
func (*local) SupportsMountOption() bool                                { return false }
func (*local) SupportsSELinuxContextMount(*upstream.Spec) (bool, error) { return false, nil }

func (*local) NewMounter(*upstream.Spec, *v1.Pod) (upstream.Mounter, error) {
	return nil, errNotMounted
}

func (*local) NewUnmounter(string, types.UID) (upstream.Unmounter, error) {
	return nil, errNotMounted
}

func (*local) ConstructVolumeSpec(string, string) (upstream.ReconstructedVolume, error) {
	return upstream.ReconstructedVolume{}, errNotMounted
}

func (l *local) CanSupport(spec *upstream.Spec) bool {
	return spec.PersistentVolume != nil && l.made(spec.PersistentVolume)
}

func (l *local) GetVolumeName(spec *upstream.Spec) (string, error) {
	if !l.CanSupport(spec) {
		return "", fmt.Errorf("%s made no such volume", LocalProvisioner)
	}
	return spec.PersistentVolume.Spec.Local.Path, nil
}

// made tells whether a volume is one of these. What an object says of itself is
// believed only as far as its directory is where they are.
func (l *local) made(pv *v1.PersistentVolume) bool {
	return pv.Spec.Local != nil && pv.Spec.Local.Path == filepath.Join(l.dir, pv.Name)
}

// A localVolume is one to be made.
type localVolume struct {
	*local
	upstream.VolumeOptions
}

func (l *local) NewProvisioner(_ klog.Logger, o upstream.VolumeOptions) (upstream.Provisioner, error) {
	claim := o.PVC.Spec
	switch {
	case len(o.Parameters) > 0:
		return nil, errors.New("parameters of the StorageClass: there are none")
	case claim.VolumeMode != nil && *claim.VolumeMode != v1.PersistentVolumeFilesystem:
		return nil, fmt.Errorf("spec.volumeMode: %s is not supported", *claim.VolumeMode)
	case claim.Selector != nil:
		return nil, errors.New("spec.selector is for volumes that are there, and isn't supported for one made on demand")
	}
	return localVolume{l, o}, nil
}

// Provision implements upstream's Provisioner.
func (v localVolume) Provision(selected *v1.Node, allowed []v1.TopologySelectorTerm) (*v1.PersistentVolume, error) {
	if selected != nil && selected.Name != v.node {
		return nil, fmt.Errorf("the volume is wanted on node %s, and can be made on %s only", selected.Name, v.node)
	}
	if len(allowed) > 0 {
		node, err := v.nodes.Get(v.node)
		if err != nil {
			return nil, fmt.Errorf("allowedTopologies of the StorageClass: %w", err)
		}
		if !helper.MatchTopologySelectorTerms(allowed, labels.Set(node.Labels)) {
			return nil, fmt.Errorf("allowedTopologies of the StorageClass don't match node %s", v.node)
		}
	}
	path := filepath.Join(v.dir, v.PVName)
	if err := volume.MakeTree(path); err != nil {
		return nil, err
	}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: v.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: v.PersistentVolumeReclaimPolicy,
			AccessModes:                   v.PVC.Spec.AccessModes,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: v.PVC.Spec.Resources.Requests[v1.ResourceStorage]},
			PersistentVolumeSource:        v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}},
			// A local volume must say where it is. That is here, also when the
			// machine is given another name.
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpExists}},
			}}}},
		},
	}, nil
}

// A usedVolume is one to be removed.
type usedVolume struct {
	upstream.MetricsNil
	path string
}

func (l *local) NewDeleter(_ klog.Logger, spec *upstream.Spec) (upstream.Deleter, error) {
	if !l.CanSupport(spec) {
		return nil, fmt.Errorf("the volume says that %s made it, but it isn't in %s: its content is left alone", LocalProvisioner, l.dir)
	}
	return &usedVolume{path: spec.PersistentVolume.Spec.Local.Path}, nil
}

func (u *usedVolume) GetPath() string { return u.path }
func (u *usedVolume) Delete() error   { return volume.RemoveTree(u.path) }

// makeClass makes the default StorageClass, where there is no class at all: who
// has others has made up their mind.
func (s *set) makeClass(ctx context.Context) {
	reclaim, binding := v1.PersistentVolumeReclaimDelete, storage.VolumeBindingImmediate
	classes := s.client.StorageV1().StorageClasses()
	for {
		list, err := classes.List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil && len(list.Items) == 0 {
			_, err = classes.Create(ctx, &storage.StorageClass{
				ObjectMeta:  metav1.ObjectMeta{Name: LocalClass, Annotations: map[string]string{isDefaultClass: "true"}},
				Provisioner: LocalProvisioner, ReclaimPolicy: &reclaim, VolumeBindingMode: &binding,
			}, metav1.CreateOptions{})
		}
		if err == nil || apierrors.IsAlreadyExists(err) || ctx.Err() != nil {
			return
		}
		s.Log.Warn("the default StorageClass can't be made; trying again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}
