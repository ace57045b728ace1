package lifecycle

import (
	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// census counts the containers of a pod by what they mean for its phase.
type census struct {
	pendingInits, pendingSidecars           int
	failedInits                             int // for good
	running, waiting, unknown               int
	stopped, stoppedForGood, stoppedHappily int
}

// podPhase is the phase that container statuses amount to. terminal: nothing
// will start again, whatever the policies. initialized: app containers have
// run in the present sandbox.
func podPhase(pod *v1.Pod, status *v1.PodStatus, terminal, initialized bool) v1.PodPhase {
	c := takeCensus(pod, status)
	switch {
	case c.failedInits > 0:
		return v1.PodFailed
	case c.pendingInits > 0, c.pendingSidecars > 0 && !initialized, c.waiting > 0:
		return v1.PodPending
	case c.running > 0 && c.unknown == 0:
		return v1.PodRunning
	case c.running == 0 && c.stopped > 0 && c.unknown == 0:
		if !terminal && c.stopped != c.stoppedForGood {
			return v1.PodRunning // being restarted
		}
		if c.stopped == c.stoppedHappily {
			return v1.PodSucceeded
		}
		return v1.PodFailed
	}
	return v1.PodPending
}

func takeCensus(pod *v1.Pod, status *v1.PodStatus) census {
	var n census
	find := func(list []v1.ContainerStatus, name string) v1.ContainerStatus {
		st, _ := podutil.GetContainerStatus(list, name)
		return st
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		st := find(status.InitContainerStatuses, c.Name)
		if isSidecar(c) {
			n.countSidecar(&st)
		} else {
			n.countInit(pod, c, &st)
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		st := find(status.ContainerStatuses, c.Name)
		n.countMain(pod, c, &st)
	}
	return n
}

// comesBack reports whether a container that ended like this is started again.
func comesBack(pod *v1.Pod, c *v1.Container, t *v1.ContainerStateTerminated) bool {
	return t.Reason == reasonRestartingAll || podutil.ContainerShouldRestart(*c, pod.Spec, t.ExitCode)
}

// lastEnd is how a container that does not run ended: now, or before it began
// to wait.
func lastEnd(st *v1.ContainerStatus) *v1.ContainerStateTerminated {
	if st.State.Waiting != nil {
		return st.LastTerminationState.Terminated
	}
	return st.State.Terminated
}

func (n *census) countInit(pod *v1.Pod, c *v1.Container, st *v1.ContainerStatus) {
	t := lastEnd(st)
	switch {
	case st.State.Running != nil || t == nil:
		n.pendingInits++
	case t.ExitCode != 0 && !comesBack(pod, c, t):
		n.failedInits++
	}
}

func (n *census) countSidecar(st *v1.ContainerStatus) {
	switch {
	case st.State.Running != nil:
		if st.Started == nil || !*st.Started {
			n.pendingSidecars++
		}
		n.running++
	case lastEnd(st) != nil:
		// An ended sidecar does not count.
	case st.State.Waiting != nil:
		n.pendingSidecars++
		n.waiting++
	default:
		n.pendingSidecars++
		n.unknown++
	}
}

func (n *census) countMain(pod *v1.Pod, c *v1.Container, st *v1.ContainerStatus) {
	t := lastEnd(st)
	switch {
	case st.State.Running != nil:
		n.running++
	case t != nil:
		n.stopped++
		if !comesBack(pod, c, t) {
			n.stoppedForGood++
		}
		if st.State.Terminated != nil && t.ExitCode == 0 {
			n.stoppedHappily++
		}
	case st.State.Waiting != nil:
		n.waiting++
	default:
		n.unknown++
	}
}
