package controllers

import (
	"context"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/volume/ephemeral"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
	"k8s.io/kubernetes/pkg/controller/volume/vacprotection"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/hostpath"
	"k8s.io/kubernetes/pkg/volume/nfs"
)

// rebind is how often claims without a volume are tried again: a volume that
// appears wakes none of them, so who applies both in one file waits this long.
// Upstream's 15 s are for thousands of volumes; these few cost a look at a cache.
const rebind = 2 * time.Second

// volumePlugins can reclaim volumes: hostPath deletes (below /tmp only, as
// upstream's) and both recycle. local and what a provisioner of its own looks
// after need no plugin to be bound.
func volumePlugins() []volume.VolumePlugin {
	recycler := volume.VolumeConfig{
		RecyclerMinimumTimeout:   60,
		RecyclerTimeoutIncrement: 30,
		RecyclerPodTemplate:      volume.NewPersistentVolumeRecyclerPodTemplate(),
	}
	nfsRecycler := recycler
	nfsRecycler.RecyclerMinimumTimeout = 300
	nfsRecycler.RecyclerPodTemplate = volume.NewPersistentVolumeRecyclerPodTemplate()
	return append(hostpath.ProbeVolumePlugins(recycler), nfs.ProbeVolumePlugins(nfsRecycler)...)
}

func newPersistentVolumeBinder(ctx context.Context, s *set) (loop, error) {
	plugins := volumePlugins()
	if s.Volumes != "" {
		plugins = append(plugins, &local{dir: s.Volumes, node: s.NodeName, nodes: s.Informers.Core().V1().Nodes().Lister()})
	}
	core := s.Informers.Core().V1()
	c, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient:                s.client,
		SyncPeriod:                rebind,
		VolumePlugins:             plugins,
		VolumeInformer:            core.PersistentVolumes(),
		ClaimInformer:             core.PersistentVolumeClaims(),
		ClassInformer:             s.Informers.Storage().V1().StorageClasses(),
		PodInformer:               core.Pods(),
		NodeInformer:              core.Nodes(),
		EnableDynamicProvisioning: true,
	})
	if err != nil {
		return nil, err
	}
	if s.Volumes == "" {
		return c.Run, nil
	}
	return together(c.Run, s.makeClass), nil
}

func newPVCProtection(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c, err := pvcprotection.NewPVCProtectionController(klog.FromContext(ctx), core.PersistentVolumeClaims(), core.Pods(), s.client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newPVProtection(ctx context.Context, s *set) (loop, error) {
	c, err := pvprotection.NewPVProtectionController(klog.FromContext(ctx), s.Informers.Core().V1().PersistentVolumes(), s.client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newVACProtection(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c, err := vacprotection.NewVACProtectionController(klog.FromContext(ctx), s.client, core.PersistentVolumeClaims(), core.PersistentVolumes(),
		s.Informers.Storage().V1().VolumeAttributesClasses())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newEphemeralVolume(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c, err := ephemeral.NewController(ctx, s.client, core.Pods(), core.PersistentVolumeClaims())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
