package agent

import (
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/engine"
)

// entry is a pod of the API as the agent last saw it.
type entry struct {
	pod *v1.Pod // the informer's; not modified
	// rejected: it was never given to the engine.
	rejected bool
	since    string // when this node first had it
	granted  allocation
	given    *v1.Pod // as the engine has it: with the resources granted
}

// seen takes a new or changed pod of this node. It is called by one goroutine.
func (a *Agent) seen(obj any) {
	pod, ok := podOf(obj)
	if !ok {
		return
	}
	if kubetypes.IsMirrorPod(pod) {
		a.mirrors.seen(pod)
		return
	}
	a.mu.Lock()
	old := a.known[pod.UID]
	a.mu.Unlock()
	e := &entry{pod: pod, given: pod}
	if old != nil {
		e.rejected, e.since, e.granted = old.rejected, old.since, old.granted
	} else {
		e.since, e.granted = firstSeen(pod, a.cfg.Clock.Now()), granted(pod)
		e.rejected = starts(pod) && !a.admits(pod)
	}
	if !e.rejected && !podutil.IsPodPhaseTerminal(pod.Status.Phase) {
		a.resize(e)
	}
	a.mu.Lock()
	a.known[pod.UID] = e
	a.mu.Unlock()
	a.writer.seen(pod)
	if e.rejected {
		if pod.DeletionTimestamp != nil {
			a.writer.finish(pod.UID)
		}
		return
	}
	if old != nil && !matters(old.given, e.given) {
		return
	}
	a.cfg.Objects.Register(pod)
	a.apply(e)
	if old != nil {
		a.retryResizes() // it may need less, or nothing more
	}
}

func (a *Agent) apply(e *entry) {
	if err := a.cfg.Engine.Apply(asKubelet(e.given, e.since), engine.FromAPI()); err != nil {
		// The API's validation is stricter than the engine's.
		a.log.Error("giving a pod to the engine", "pod", e.pod.Namespace+"/"+e.pod.Name, "uid", string(e.pod.UID), "err", err)
	}
}

// gone takes note that the API has a pod no more. What still runs of it ends
// within the grace it had.
func (a *Agent) gone(obj any) {
	pod, ok := podOf(obj)
	if !ok {
		return
	}
	if kubetypes.IsMirrorPod(pod) {
		a.mirrors.gone(pod)
		return
	}
	a.mu.Lock()
	e := a.known[pod.UID]
	delete(a.known, pod.UID)
	a.mu.Unlock()
	a.writer.forget(pod.UID)
	if e == nil || e.rejected {
		return
	}
	var grace *time.Duration
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		grace = ptr.To(time.Duration(*s) * time.Second)
	}
	a.cfg.Engine.Delete(pod.UID, grace)
	a.retryResizes()
}

// starts tells whether a pod is new to this node, and is to run: one that has
// a status from here holds its resources already.
func starts(pod *v1.Pod) bool {
	return pod.Status.StartTime == nil && pod.DeletionTimestamp == nil && !podutil.IsPodPhaseTerminal(pod.Status.Phase)
}

// admits lets a pod in, or fails it.
func (a *Agent) admits(pod *v1.Pod) bool {
	reason, message := a.admit.judge(pod, a.active(pod), lifecycle.AddOperation)
	if reason == "" {
		return true
	}
	a.log.Info("pod rejected", "pod", pod.Namespace+"/"+pod.Name, "uid", string(pod.UID), "reason", reason, "why", message)
	a.events.about(pod, v1.EventTypeWarning, reason, message)
	a.writer.reject(pod, reason, message)
	return false
}

// active are the other pods that use this node's resources, with those they
// were granted: the API's, those of an earlier life that weren't seen yet among
// them, and the manifest directory's.
func (a *Agent) active(but *v1.Pod) []*v1.Pod {
	list := a.mirrors.pods()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, obj := range a.pods.GetStore().List() {
		pod, ok := obj.(*v1.Pod)
		if !ok || pod.Spec.NodeName != a.cfg.NodeName || pod.UID == but.UID || kubetypes.IsMirrorPod(pod) {
			continue
		}
		switch e := a.known[pod.UID]; {
		case e == nil && !starts(pod) && !podutil.IsPodPhaseTerminal(pod.Status.Phase):
			list = append(list, granted(pod).with(pod))
		case e != nil && !e.rejected && !podutil.IsPodPhaseTerminal(a.writer.phase(e.pod)):
			list = append(list, e.given)
		}
	}
	return list
}

// matters tells whether a change of a pod is for the engine: it isn't when
// only the status that came from the engine has changed.
func matters(old, now *v1.Pod) bool {
	return !maps.Equal(old.Labels, now.Labels) || !maps.Equal(old.Annotations, now.Annotations) ||
		old.Generation != now.Generation ||
		!old.DeletionTimestamp.Equal(now.DeletionTimestamp) ||
		!ptr.Equal(old.DeletionGracePeriodSeconds, now.DeletionGracePeriodSeconds) ||
		!equality.Semantic.DeepEqual(old.Spec, now.Spec) ||
		!equality.Semantic.DeepEqual(foreign(old), foreign(now)) ||
		podutil.IsPodPhaseTerminal(now.Status.Phase) && !podutil.IsPodPhaseTerminal(old.Status.Phase)
}

// foreign are the conditions others write, readiness gates among them.
func foreign(pod *v1.Pod) []v1.PodCondition {
	return slices.DeleteFunc(slices.Clone(pod.Status.Conditions), func(c v1.PodCondition) bool {
		return kubetypes.PodConditionByKubelet(c.Type)
	})
}

// ourMarks is the domain of the annotations by which the node and its commands
// know whose a sandbox is.
const ourMarks = "unipod.dev/"

// asKubelet is a pod of the API as kubelet hands it on: marked with where it
// comes from. Whatever its author wrote there, or among the node's own marks,
// must not pass for the node's word.
func asKubelet(pod *v1.Pod, since string) *v1.Pod {
	marked := *pod
	marked.Annotations = maps.Clone(pod.Annotations)
	if marked.Annotations == nil {
		marked.Annotations = map[string]string{}
	}
	maps.DeleteFunc(marked.Annotations, func(name, _ string) bool { return strings.HasPrefix(name, ourMarks) })
	marked.Annotations[kubetypes.ConfigSourceAnnotationKey] = kubetypes.ApiserverSource
	marked.Annotations[kubetypes.ConfigFirstSeenAnnotationKey] = since
	return &marked
}

// firstSeen is when this node first had the pod.
func firstSeen(pod *v1.Pod, now time.Time) string {
	if pod.Status.StartTime != nil {
		now = pod.Status.StartTime.Time
	}
	return now.Format(time.RFC3339Nano)
}
