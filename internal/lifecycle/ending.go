package lifecycle

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// shortenGrace takes note of how long the pod's end may take: what the
// deletion or eviction says, or the spec; it never grows again.
func (s *step) shortenGrace() {
	if s.stage != Terminating {
		return
	}
	wish := s.pod.DeletionGracePeriodSeconds
	if s.evicted != nil && s.evicted.Grace != nil && (wish == nil || *s.evicted.Grace < *wish) {
		wish = s.evicted.Grace
	}
	if wish == nil && s.grace == nil {
		wish = s.pod.Spec.TerminationGracePeriodSeconds
		if wish == nil {
			minimum := int64(minimumGrace / time.Second)
			wish = &minimum
		}
	}
	if wish != nil && (s.grace == nil || *wish < *s.grace) {
		g := max(*wish, 0)
		s.grace = &g
	}
}

// terminate ends all that runs, then the sandboxes, and reports when it is
// done.
func (s *step) terminate() (done bool) {
	s.shortenGrace()
	busy := s.cancelStarts()
	grace := time.Duration(*s.grace) * time.Second
	if s.killAll(grace) {
		busy = true
	}
	s.driveKills()
	if _, creating := s.sandbox[""]; creating {
		busy = true
	}
	return !busy && !s.volumes.busy && !s.stopSandboxes()
}

// tearDown gives the volumes back and reports when they are.
func (s *step) tearDown() (done bool) {
	return s.volumes.gone || s.volumeStep(TearDownVolumes)
}

func (e VolumesTornDown) apply(s *step) { s.volumesAre(volumeState{gone: true}, e.Err) }

// clear removes what the runtime still holds of a deleted pod and reports when
// nothing is left.
func (s *step) clear() (done bool) {
	s.dropContainers()
	if len(s.in.View.Containers) > 0 {
		return false
	}
	for _, sb := range s.in.View.Sandboxes {
		s.sandboxAction(RemoveSandbox, sb.ID)
	}
	return len(s.in.View.Sandboxes) == 0
}

func (s *step) dropContainers() {
	for i := range s.in.View.Containers {
		s.removeContainer(&s.in.View.Containers[i], false)
	}
}

func (e Evicted) apply(s *step) {
	if s.stage == Active && s.evicted == nil {
		s.evicted = &e
	}
}

func (Prune) apply(s *step) { s.pruned = s.pruned || s.stage == Cleared }

// reject is the status of a pod the node did not take in.
func (s *step) reject(status *v1.PodStatus) v1.PodStatus {
	return v1.PodStatus{
		Phase: v1.PodFailed, Reason: s.evicted.Reason, Message: s.evicted.Message,
		QOSClass: status.QOSClass, StartTime: status.StartTime, ObservedGeneration: status.ObservedGeneration,
	}
}

// finalize makes the status of a pod that has ended complete: what could not
// be located counts as failed, and the phase is a final one.
func (s *step) finalize(status *v1.PodStatus) {
	lost := v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
		Reason:   "ContainerStatusUnknown",
		Message:  "The container could not be located when the pod was terminated",
		ExitCode: 137,
	}}
	if s.everInitialized(status) {
		for i := range status.ContainerStatuses {
			if status.ContainerStatuses[i].State.Terminated == nil {
				status.ContainerStatuses[i].State = lost
			}
		}
	}
	for i := range attempted(status.InitContainerStatuses) {
		if status.InitContainerStatuses[i].State.Terminated == nil {
			status.InitContainerStatuses[i].State = lost
		}
	}
	if !ended(status.Phase) {
		status.Phase = v1.PodFailed
	}
}

// everInitialized reports whether any app container may have run.
func (s *step) everInitialized(status *v1.PodStatus) bool {
	if len(s.pod.Spec.InitContainers) == 0 {
		return true
	}
	for _, c := range status.ContainerStatuses {
		if c.LastTerminationState.Terminated != nil || c.State.Waiting == nil {
			return true
		}
	}
	n := len(status.InitContainerStatuses)
	if n == 0 {
		return false
	}
	last := status.InitContainerStatuses[n-1]
	if c := s.spec[last.Name]; c != nil && isSidecar(c) {
		return last.State.Running != nil && last.Started != nil && *last.Started
	}
	for _, t := range []*v1.ContainerStateTerminated{last.State.Terminated, last.LastTerminationState.Terminated} {
		if t != nil && t.ExitCode == 0 {
			return true
		}
	}
	return false
}

// attempted leaves out the init containers at the end that were never tried;
// the first always counts.
func attempted(inits []v1.ContainerStatus) []v1.ContainerStatus {
	for i := len(inits) - 1; i >= 0; i-- {
		if inits[i].State.Waiting == nil || inits[i].LastTerminationState.Terminated != nil {
			return inits[:i+1]
		}
	}
	return inits[:min(1, len(inits))]
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
