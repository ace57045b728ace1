package lifecycle

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// ours are the condition types the machine writes; all others are kept as the
// pod carries them.
var ours = []v1.PodConditionType{
	v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled,
	v1.AllContainersRestarting, v1.PodResizeInProgress, v1.PodResizePending, v1.DisruptionTarget,
}

func conditionTrue(list []v1.PodCondition, t v1.PodConditionType) bool {
	return slices.ContainsFunc(list, func(c v1.PodCondition) bool { return c.Type == t && c.Status == v1.ConditionTrue })
}

func findCondition(list []v1.PodCondition, t v1.PodConditionType) *v1.PodCondition {
	i := slices.IndexFunc(list, func(c v1.PodCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// conditions sets the pod's conditions from its phase and container statuses,
// which must be set.
func (s *step) conditions(status *v1.PodStatus) {
	for _, c := range s.pod.Status.Conditions {
		if !slices.Contains(ours, c.Type) {
			status.Conditions = append(status.Conditions, c)
		}
	}
	if c := s.disruption(); c != nil {
		status.Conditions = append(status.Conditions, *c)
	}
	add := func(c v1.PodCondition) {
		c.ObservedGeneration = s.pod.Generation
		status.Conditions = append(status.Conditions, c)
	}
	if c := s.resizeCondition(); c != nil {
		status.Conditions = append(status.Conditions, *c)
	}
	add(s.readyToStart())
	all := append(slices.Clone(status.InitContainerStatuses), status.ContainerStatuses...)
	add(s.initialized(all, status.Phase))
	containers := s.containersReady(all, status.Phase)
	add(s.ready(containers, status.Conditions))
	add(containers)
	add(v1.PodCondition{Type: v1.PodScheduled, Status: v1.ConditionTrue})
	if podutil.AllContainersCouldRestart(&s.pod.Spec) {
		c := s.allRestarting(status.Phase)
		status.Conditions = append(status.Conditions, c)
	}
}

// disruption is the DisruptionTarget condition, once there is one.
func (s *step) disruption() *v1.PodCondition {
	if s.evicted != nil && s.evicted.Condition != nil {
		return s.evicted.Condition
	}
	if c := findCondition(s.status.Conditions, v1.DisruptionTarget); c != nil {
		return c
	}
	return findCondition(s.pod.Status.Conditions, v1.DisruptionTarget)
}

func (s *step) readyToStart() v1.PodCondition {
	change := s.sandboxChange()
	if !change.needed {
		return v1.PodCondition{Type: v1.PodReadyToStartContainers, Status: v1.ConditionTrue}
	}
	return v1.PodCondition{
		Type: v1.PodReadyToStartContainers, Status: v1.ConditionFalse,
		Reason: "PodSandboxNotReady", Message: change.why,
	}
}

// unmet says which containers lack something, in kubelet's form.
func unmet(lack string, unknown, lacking []string) string {
	var parts []string
	if len(unknown) > 0 {
		parts = append(parts, fmt.Sprintf("containers with unknown status: %s", unknown))
	}
	if len(lacking) > 0 {
		parts = append(parts, fmt.Sprintf("containers with %s status: %s", lack, lacking))
	}
	return strings.Join(parts, ", ")
}

func (s *step) initialized(all []v1.ContainerStatus, phase v1.PodPhase) v1.PodCondition {
	yes := v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionTrue}
	var unknown, incomplete []string
	for i := range s.pod.Spec.InitContainers {
		c := &s.pod.Spec.InitContainers[i]
		st, ok := podutil.GetContainerStatus(all, c.Name)
		switch {
		case !ok:
			unknown = append(unknown, c.Name)
		case isSidecar(c) && (st.Started == nil || !*st.Started), !isSidecar(c) && !st.Ready:
			incomplete = append(incomplete, c.Name)
		}
	}
	if phase == v1.PodSucceeded && len(unknown) == 0 {
		yes.Reason = "PodCompleted"
		return yes
	}
	for i := range s.pod.Spec.Containers {
		st, ok := podutil.GetContainerStatus(all, s.pod.Spec.Containers[i].Name)
		if ok && (st.State.Running != nil || st.State.Terminated != nil) {
			return yes
		}
	}
	message := unmet("incomplete", unknown, incomplete)
	// Once initialized, always initialized, even while all is restarted.
	if message == "" || conditionTrue(s.status.Conditions, v1.PodInitialized) {
		return yes
	}
	return v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionFalse, Reason: "ContainersNotInitialized", Message: message}
}

func (s *step) containersReady(all []v1.ContainerStatus, phase v1.PodPhase) v1.PodCondition {
	no := v1.PodCondition{Type: v1.ContainersReady, Status: v1.ConditionFalse}
	var unknown, unready []string
	check := func(name string) {
		switch st, ok := podutil.GetContainerStatus(all, name); {
		case !ok:
			unknown = append(unknown, name)
		case !st.Ready:
			unready = append(unready, name)
		}
	}
	for i := range s.pod.Spec.InitContainers {
		if c := &s.pod.Spec.InitContainers[i]; isSidecar(c) {
			check(c.Name)
		}
	}
	for i := range s.pod.Spec.Containers {
		check(s.pod.Spec.Containers[i].Name)
	}
	switch message := unmet("unready", unknown, unready); {
	case phase == v1.PodSucceeded && len(unknown) == 0:
		no.Reason = "PodCompleted"
	case phase == v1.PodFailed:
		no.Reason = "PodFailed"
	case message != "":
		no.Reason, no.Message = "ContainersNotReady", message
	default:
		return v1.PodCondition{Type: v1.ContainersReady, Status: v1.ConditionTrue}
	}
	return no
}

// ready is ContainersReady and all readiness gates.
func (s *step) ready(containers v1.PodCondition, conditions []v1.PodCondition) v1.PodCondition {
	c := containers
	c.Type = v1.PodReady
	if c.Status != v1.ConditionTrue {
		return c
	}
	var unmet []string
	for _, gate := range s.pod.Spec.ReadinessGates {
		switch g := findCondition(conditions, gate.ConditionType); {
		case g == nil:
			unmet = append(unmet, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(gate.ConditionType)))
		case g.Status != v1.ConditionTrue:
			unmet = append(unmet, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(gate.ConditionType), g.Status))
		}
	}
	if len(unmet) > 0 {
		c.Status, c.Reason, c.Message = v1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(unmet, ", ")
	}
	return c
}

func (s *step) allRestarting(phase v1.PodPhase) v1.PodCondition {
	c := v1.PodCondition{Type: v1.AllContainersRestarting, Status: v1.ConditionFalse}
	switch {
	case phase == v1.PodSucceeded:
		c.Reason = "PodCompleted"
	case phase == v1.PodFailed:
		c.Reason = "PodFailed"
	case s.restartingAll() && s.anyLeft():
		c.Status, c.Reason, c.Message = v1.ConditionTrue, "RestartAllContainersStarted", "container exited with restart policy rule"
	}
	return c
}

// anyLeft reports whether the runtime still has an instance of a container
// that is to be reset.
func (s *step) anyLeft() bool {
	for _, group := range [][]v1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range group {
			if s.latest(group[i].Name) != nil {
				return true
			}
		}
	}
	return false
}

// stampConditions dates the conditions: the moment their status last changed.
func stampConditions(status, old *v1.PodStatus, now time.Time) {
	for i := range status.Conditions {
		c := &status.Conditions[i]
		if !slices.Contains(ours, c.Type) {
			continue
		}
		c.LastTransitionTime = metav1.NewTime(now)
		if o := findCondition(old.Conditions, c.Type); o != nil && o.Status == c.Status {
			c.LastTransitionTime = o.LastTransitionTime
		}
	}
}
