package upkeep

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"

	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/podspec"
	"unipod.dev/unipod/internal/upkeep/eviction"
)

func aboutMemory(t evictionapi.Threshold) bool { return t.Signal == evictionapi.SignalMemoryAvailable }

// look measures the node and does what is needed. It reports whether a pod had
// to go, so that the next look should be at once.
func (k *Keeper) look(ctx context.Context) (evicted bool) {
	node := k.cfg.Stats.Node(ctx)
	if ctx.Err() != nil {
		return false
	}
	var out eviction.Output
	k.looks, out = eviction.Step(k.cfg.Eviction, k.looks, k.cfg.Clock.Now(), node)
	k.publish(out.Conditions)
	pods := k.active()
	limited := slices.ContainsFunc(pods, eviction.Limited)
	if out.Reclaim == nil && !limited {
		return false
	}
	images, split, err := k.cfg.Stats.Separate(ctx)
	if err != nil {
		if ctx.Err() == nil {
			k.cfg.Log.Error("finding out which file systems the node has", "err", err)
		}
		return false
	}
	layout := eviction.Layout{ImageFs: images, SplitImageFs: split}
	if limited {
		if gone := k.keepLimits(ctx, layout, pods); len(gone) > 0 {
			k.await(ctx, gone)
			return true
		}
	}
	if out.Reclaim == nil {
		return false
	}
	return k.reclaim(ctx, layout, out.Reclaim)
}

func (k *Keeper) publish(conditions []v1.NodeConditionType) {
	k.mu.Lock()
	old := k.conditions
	k.conditions = conditions
	k.mu.Unlock()
	if slices.Equal(old, conditions) {
		return
	}
	k.cfg.Log.Info("node conditions", "conditions", fmt.Sprint(conditions))
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

func over(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// active are the pods that still run or may.
func (k *Keeper) active() []*v1.Pod {
	return slices.DeleteFunc(k.cfg.Engine.Pods(), over)
}

// keepLimits ends the pods that have outgrown their limits of storage.
func (k *Keeper) keepLimits(ctx context.Context, layout eviction.Layout, pods []*v1.Pod) (gone []*v1.Pod) {
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil || !eviction.Limited(pod) || !eviction.Evictable(pod) {
			continue
		}
		st, err := k.cfg.Stats.Pod(ctx, pod)
		if err != nil {
			if ctx.Err() == nil {
				k.cfg.Log.Error("measuring a pod's storage", "pod", name(pod), "err", err)
			}
			continue
		}
		if st == nil {
			continue
		}
		if e, over := eviction.OverLimit(layout, pod, st); over {
			k.evict(pod, e)
			gone = append(gone, pod)
		}
	}
	return gone
}

func name(pod *v1.Pod) string { return pod.Namespace + "/" + pod.Name }

// reclaim gets back what the node is short of: from what nobody uses, and if
// that is not enough, from one pod.
func (k *Keeper) reclaim(ctx context.Context, layout eviction.Layout, r *eviction.Reclaim) (evicted bool) {
	k.record(v1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", r.Resource))
	containers, images := r.Frees(layout)
	if containers {
		k.pruneContainers(ctx)
	}
	if images {
		if err := k.dropUnusedImages(ctx); err != nil && ctx.Err() == nil {
			k.cfg.Log.Error("removing unused images", "err", err)
		}
	}
	if (containers || images) && eviction.Relieved(k.cfg.Eviction, k.cfg.Stats.Node(ctx)) {
		k.cfg.Log.Info("what nobody uses was enough", "resource", string(r.Resource))
		return false
	}
	summary, err := k.cfg.Stats.Get(ctx, true)
	if err != nil {
		if ctx.Err() == nil {
			k.cfg.Log.Error("measuring the pods", "err", err)
		}
		return false
	}
	figures := eviction.NewFigures(summary.Pods)
	for _, pod := range eviction.Rank(r, layout, k.active(), figures) {
		if !eviction.Evictable(pod) {
			continue
		}
		k.evict(pod, eviction.Of(k.cfg.Eviction, r, pod, figures))
		k.await(ctx, []*v1.Pod{pod})
		return true
	}
	k.cfg.Log.Error("the node is short of something and no pod can be ended for it", "resource", string(r.Resource))
	return false
}

// evict ends a pod; one that ends already gets no more time than that.
func (k *Keeper) evict(pod *v1.Pod, e eviction.Eviction) {
	k.cfg.Log.Warn("evicting a pod", "pod", name(pod), "uid", string(pod.UID), "message", e.Message)
	if pod.DeletionTimestamp != nil {
		k.cfg.Engine.Delete(pod.UID, &e.Grace)
		return
	}
	k.cfg.Engine.Evict(pod.UID, engine.Eviction{
		Reason: eviction.Reason, Message: e.Message, Grace: &e.Grace, Condition: e.Condition, Annotations: e.Annotations,
	})
}

// await waits until pods have ended, for some time.
func (k *Keeper) await(ctx context.Context, pods []*v1.Pod) {
	waits := map[string]bool{}
	for _, pod := range pods {
		waits[string(pod.UID)] = true
	}
	k.until(ctx, func() bool {
		return !slices.ContainsFunc(k.active(), func(pod *v1.Pod) bool { return waits[string(pod.UID)] })
	})
}

// until checks for something until it is so, its time is up or ctx ends.
func (k *Keeper) until(ctx context.Context, so func() bool) {
	timeout := k.cfg.Clock.NewTimer(goneTimeout)
	defer timeout.Stop()
	ticker := k.cfg.Clock.NewTicker(goneCheck)
	defer ticker.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			return
		case <-timeout.C():
			return
		case <-ticker.C():
		}
	}
}

// pruneContainers removes what ended pods keep in the runtime and waits for it.
func (k *Keeper) pruneContainers(ctx context.Context) {
	k.cfg.Engine.PruneEnded()
	k.until(ctx, func() bool {
		ended := map[string]bool{}
		for _, pod := range k.cfg.Engine.Pods() {
			if over(pod) {
				ended[string(pod.UID)] = true
			}
		}
		if len(ended) == 0 {
			return true
		}
		list, err := k.cfg.CRI.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err != nil || !slices.ContainsFunc(list.Containers, func(c *runtimeapi.Container) bool {
			return ended[c.Labels[podspec.LabelPodUID]]
		})
	})
}
