package lifecycle

import (
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// step is the work table of one Step: the new state in the making, what it is
// made from, and what comes out.
type step struct {
	State
	in  Input
	now time.Time
	pod *v1.Pod
	out Output

	// containers are the instances the machine may see, newest first.
	containers []Container
	spec       map[string]*v1.Container
	// restatus: a decision has changed what the status should say.
	restatus bool
}

// Step takes the pod one step further. It is pure: see the package comment.
func Step(state State, in Input) (State, Output) {
	s := &step{State: state.clone(), in: in, now: in.Now, pod: in.Pod, spec: specs(in.Pod)}
	if s.status == nil {
		s.status = in.Pod.Status.DeepCopy()
		s.shown = s.status
	}
	for _, e := range in.Events {
		e.apply(s)
	}
	s.look()
	s.adopt()

	if s.stage == Active && s.evicted != nil {
		// What has ended by itself isn't said to have been evicted.
		late := s.evicted
		s.evicted = nil
		if status := s.makeStatus(false); !ended(status.Phase) {
			s.evicted = late
		}
	}
	if s.stage == Active && (s.pod.DeletionTimestamp != nil || s.evicted != nil || ended(s.pod.Status.Phase)) {
		s.enter(Terminating)
	}
	s.shortenGrace()
	status := s.makeStatus(false)
	if s.stage == Active {
		s.checkDeadline(&status)
		if ended(status.Phase) {
			s.enter(Terminating)
		}
	}
	switch s.stage {
	case Active:
		s.active(&status)
		if s.restatus {
			status = s.makeStatus(false)
		}
	case Terminating:
		if s.terminate() {
			s.enter(Terminated)
			status = s.makeStatus(true)
		}
	}
	if s.stage == Terminated && s.tearDown() {
		s.finalize(&status)
		s.enter(Cleared)
	}
	if s.stage == Cleared {
		s.finalize(&status)
		s.out.Ended = true
		if s.pruned && !s.in.Untold {
			s.dropContainers()
		}
		s.out.Removed = s.pod.DeletionTimestamp != nil && !s.in.Untold && s.clear()
	}
	s.out.Probes = s.probes()
	s.publish(status)
	return s.State, s.out
}

// publish keeps the status and puts out what others may see of it: that a pod
// has ended only when nothing of it can run any more.
func (s *step) publish(status v1.PodStatus) {
	if s.evicted != nil && s.evicted.Rejected {
		status = s.reject(&status)
	}
	before := s.shown
	s.status = &status
	shown := status.DeepCopy()
	if ended(shown.Phase) && s.stage < Terminated && !ended(before.Phase) {
		shown.Phase, shown.Reason, shown.Message = before.Phase, before.Reason, before.Message
		if shown.Phase == "" {
			shown.Phase = v1.PodPending
		}
	}
	if s.evicted != nil && s.evicted.Condition != nil && s.stage < Terminated {
		shown.Conditions = slices.DeleteFunc(shown.Conditions, func(c v1.PodCondition) bool { return c.Type == s.evicted.Condition.Type })
	}
	s.shown = shown
	s.out.Status = *shown.DeepCopy()
}

func ended(p v1.PodPhase) bool { return p == v1.PodSucceeded || p == v1.PodFailed }

func (s *step) enter(stage Stage) { s.stage = stage }

// specs indexes every container of the pod by name.
func specs(pod *v1.Pod) map[string]*v1.Container {
	m := map[string]*v1.Container{}
	for i := range pod.Spec.InitContainers {
		m[pod.Spec.InitContainers[i].Name] = &pod.Spec.InitContainers[i]
	}
	for i := range pod.Spec.Containers {
		m[pod.Spec.Containers[i].Name] = &pod.Spec.Containers[i]
	}
	for i := range pod.Spec.EphemeralContainers {
		c := v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		m[c.Name] = &c
	}
	return m
}

// look takes the runtime's view in: instances of a Start under way stay hidden
// until it is through, kills of what has ended are over, and memory of what is
// gone is dropped.
func (s *step) look() {
	newest := map[string]bool{}
	present := map[string]bool{}
	for _, c := range s.in.View.Containers {
		present[c.ID] = true
		st, starting := s.starts[c.Name]
		if starting && !newest[c.Name] && c.ID != st.before {
			// Only instances newer than the one before the start are its own.
			continue
		}
		newest[c.Name] = true
		s.containers = append(s.containers, c)
		if k, killed := s.kills[c.ID]; killed && !runs(c) {
			delete(s.kills, c.ID)
			if k.restart {
				s.forced[c.Name] = forced{id: c.ID, base: k.base}
			}
		}
	}
	gone := func(id string) bool { return !present[id] }
	maps.DeleteFunc(s.kills, func(id string, k kill) bool { return gone(id) })
	maps.DeleteFunc(s.health, func(id string, _ map[ProbeKind]probeState) bool { return gone(id) })
	maps.DeleteFunc(s.removals, func(id string, _ bool) bool { return gone(id) })
	maps.DeleteFunc(s.forced, func(_ string, f forced) bool { return gone(f.id) })
	sandboxes := map[string]bool{}
	for _, sb := range s.in.View.Sandboxes {
		sandboxes[sb.ID] = true
	}
	maps.DeleteFunc(s.stoppedSandboxes, func(id string, _ bool) bool { return !sandboxes[id] })
}

// runs reports whether the container may still do something: it runs, or
// nobody knows.
func runs(c Container) bool { return c.State == Running || c.State == Unknown }

// latest is the newest visible instance of a container, nil if there is none.
func (s *step) latest(name string) *Container {
	i := slices.IndexFunc(s.containers, func(c Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &s.containers[i]
}

// latestIn is the newest visible instance in one sandbox.
func (s *step) latestIn(sandbox, name string) *Container {
	i := slices.IndexFunc(s.containers, func(c Container) bool { return c.Name == name && c.SandboxID == sandbox })
	if i < 0 {
		return nil
	}
	return &s.containers[i]
}

// activeSandbox is the newest sandbox if it is ready.
func (s *step) activeSandbox() string {
	if sbs := s.in.View.Sandboxes; len(sbs) > 0 && sbs[0].Ready {
		return sbs[0].ID
	}
	return ""
}

func (s *step) do(a Action) { s.out.Actions = append(s.out.Actions, a) }

func (s *step) record(kind, reason, container, format string, args ...any) {
	s.out.Records = append(s.out.Records, Record{Type: kind, Reason: reason, Container: container, Message: fmt.Sprintf(format, args...)})
}

// wake asks to be stepped at t at the latest.
func (s *step) wake(t time.Time) {
	if s.out.WakeAt.IsZero() || t.Before(s.out.WakeAt) {
		s.out.WakeAt = t
	}
}

// describe is kubelet's form of a pod's name in messages.
func describe(pod *v1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

// checkDeadline fails the pod when activeDeadlineSeconds have passed since it
// was first seen.
func (s *step) checkDeadline(status *v1.PodStatus) {
	if s.pod.Spec.ActiveDeadlineSeconds == nil || ended(status.Phase) {
		return
	}
	at := status.StartTime.Add(time.Duration(*s.pod.Spec.ActiveDeadlineSeconds) * time.Second)
	if s.now.Before(at) {
		s.wake(at)
		return
	}
	const message = "Pod was active on the node longer than the specified deadline"
	s.evicted = &Evicted{Reason: "DeadlineExceeded", Message: message}
	s.record(v1.EventTypeNormal, "DeadlineExceeded", "", message)
	*status = s.makeStatus(false)
}

// makeStatus is the pod's status as the runtime shows it now. terminal says
// that nothing will ever start again.
func (s *step) makeStatus(terminal bool) v1.PodStatus {
	old := s.status
	status := v1.PodStatus{QOSClass: qosClass(s.pod), ObservedGeneration: max(s.pod.Generation, old.ObservedGeneration)}
	s.addresses(&status)
	if s.stage == Cleared {
		// How it ended is known; its containers are removed in any order now,
		// and an older run must not show through.
		kept := old.DeepCopy()
		status.InitContainerStatuses, status.ContainerStatuses = kept.InitContainerStatuses, kept.ContainerStatuses
		status.EphemeralContainerStatuses = kept.EphemeralContainerStatuses
	} else {
		s.allContainerStatuses(&status)
	}
	s.applyProbes(&status)
	s.phase(&status, terminal)
	s.conditions(&status)
	s.resourceStatus(&status)
	status.StartTime = old.StartTime
	if status.StartTime.IsZero() {
		status.StartTime = &metav1.Time{Time: s.now}
	}
	stampConditions(&status, old, s.now)
	s.normalize(&status)
	return status
}

// phase sets the phase with its reason and message.
func (s *step) phase(status *v1.PodStatus, terminal bool) {
	old := s.status
	status.Phase = podPhase(s.pod, status, terminal, s.initializedInSandbox())
	if !ended(status.Phase) && ended(old.Phase) {
		status.Phase = old.Phase
	}
	// What was published as the end is final.
	for _, public := range []v1.PodPhase{s.pod.Status.Phase, s.shown.Phase} {
		if ended(public) {
			status.Phase = public
		}
	}
	if status.Phase == old.Phase {
		status.Reason, status.Message = old.Reason, old.Message
	}
	if s.evicted != nil {
		status.Phase, status.Reason, status.Message = v1.PodFailed, s.evicted.Reason, s.evicted.Message
	}
}
