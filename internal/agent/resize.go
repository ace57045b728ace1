package agent

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/events"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// allocation is what of the node a pod was given: by container, and as a
// whole. A resize that doesn't fit waits, and the pod keeps what it has.
type allocation struct {
	containers map[string]v1.ResourceRequirements
	pod        *v1.ResourceRequirements
}

// asked is what a pod's spec asks for.
func asked(pod *v1.Pod) allocation {
	a := allocation{containers: map[string]v1.ResourceRequirements{}, pod: pod.Spec.Resources}
	for c := range podutil.ContainerIter(&pod.Spec, podutil.InitContainers|podutil.Containers) {
		a.containers[c.Name] = c.Resources
	}
	return a
}

func (a allocation) equal(b allocation) bool {
	return equality.Semantic.DeepEqual(a.containers, b.containers) && equality.Semantic.DeepEqual(a.pod, b.pod)
}

// granted is what a pod was given in an earlier life of this node, as its
// status tells; what it doesn't tell was as asked.
func granted(pod *v1.Pod) allocation {
	a := asked(pod)
	_, pending := podutil.GetPodCondition(&pod.Status, v1.PodResizePending)
	if pending == nil {
		return a
	}
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			st := &list[i]
			r, known := a.containers[st.Name]
			if !known || st.AllocatedResources == nil {
				continue
			}
			r.Requests = st.AllocatedResources
			if st.Resources != nil {
				r.Limits = st.Resources.Limits
			}
			a.containers[st.Name] = r
		}
	}
	return a
}

// with is the pod with these resources in the place of those it asks for.
func (a allocation) with(pod *v1.Pod) *v1.Pod {
	if a.equal(asked(pod)) {
		return pod
	}
	pod = pod.DeepCopy()
	pod.Spec.Resources = a.pod
	for c := range podutil.ContainerIter(&pod.Spec, podutil.InitContainers|podutil.Containers) {
		if r, ok := a.containers[c.Name]; ok {
			c.Resources = *r.DeepCopy()
		}
	}
	return pod
}

// resize decides about the resources a pod asks for beyond those it has. It
// sets what the engine shall see.
func (a *Agent) resize(e *entry) {
	if e.granted.equal(asked(e.pod)) {
		e.given = e.pod
		a.writer.pending(e.pod.UID, nil)
		return
	}
	reason, message := a.admit.judge(e.pod, a.active(e.pod), lifecycle.ResizeOperation)
	if reason == "" {
		e.granted, e.given = asked(e.pod), e.pod
		a.writer.pending(e.pod.UID, nil)
		a.events.about(e.pod, v1.EventTypeNormal, events.ResizeStarted, events.PodResizeStartedMsg(klog.Background(), e.pod, e.pod.Generation))
		return
	}
	e.given = e.granted.with(e.pod)
	news := a.writer.pending(e.pod.UID, &v1.PodCondition{
		Type: v1.PodResizePending, Status: v1.ConditionTrue, Reason: v1.PodReasonDeferred, Message: message,
		LastTransitionTime: metav1.NewTime(a.cfg.Clock.Now()), ObservedGeneration: e.pod.Generation,
	})
	if news {
		a.events.about(e.pod, v1.EventTypeWarning, events.ResizeDeferred,
			events.PodResizePendingMsg(klog.Background(), e.pod, v1.PodReasonDeferred, message, e.pod.Generation))
	}
}

// retryResizes asks again for the pods whose resize waits: another pod has
// gone, or needs less.
func (a *Agent) retryResizes() {
	a.mu.Lock()
	var waiting []*entry
	for _, e := range a.known {
		if !e.rejected && e.given != e.pod {
			waiting = append(waiting, e)
		}
	}
	a.mu.Unlock()
	for _, old := range waiting {
		e := *old
		a.resize(&e)
		if e.given != e.pod {
			continue
		}
		a.mu.Lock()
		a.known[e.pod.UID] = &e
		a.mu.Unlock()
		a.apply(&e)
	}
}
