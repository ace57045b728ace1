package lifecycle

import (
	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// resizable are the resources that can change while a container runs.
var resizable = []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}

// resized lists the resizable resources in which a running container differs
// from its spec.
func (s *step) resized(c *v1.Container, inst *Container) []v1.ResourceName {
	if inst.State != Running {
		return nil
	}
	have, ok := s.actuated[c.Name]
	if !ok {
		// Adopted: what it was created with is what the spec says, or it was
		// resized while nobody looked and the runtime can tell.
		if inst.Resources == nil {
			return nil
		}
		have = *inst.Resources
	}
	var list []v1.ResourceName
	for _, r := range resizable {
		if !sameQuantity(have.Requests, c.Resources.Requests, r) || !sameQuantity(have.Limits, c.Resources.Limits, r) {
			list = append(list, r)
		}
	}
	return list
}

func sameQuantity(a, b v1.ResourceList, r v1.ResourceName) bool {
	x, y := a[r], b[r]
	return x.Cmp(y) == 0
}

// resizeNeedsRestart reports whether the container's resizePolicy wants a
// restart for what has changed.
func (s *step) resizeNeedsRestart(c *v1.Container, inst *Container) bool {
	for _, r := range s.resized(c, inst) {
		for _, p := range c.ResizePolicy {
			if p.ResourceName == r && p.RestartPolicy == v1.RestartContainer {
				return true
			}
		}
	}
	return false
}

// driveResizes gives running containers the resources of their spec. Those
// that shrink go first, so that the pod never needs more than both sums.
func (s *step) driveResizes(status *v1.PodStatus) {
	var grow []Action
	for _, group := range [][]v1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range group {
			c := &group[i]
			inst := s.latest(c.Name)
			if inst == nil || s.resizes[c.Name] || s.retryHolds("resize/"+c.Name) || len(s.resized(c, inst)) == 0 {
				continue
			}
			if _, killing := s.kills[inst.ID]; killing || s.resizeNeedsRestart(c, inst) {
				continue
			}
			s.resizes[c.Name] = true
			a := Action{Verb: Resize, Container: c.Name, ID: inst.ID, SandboxID: inst.SandboxID,
				Shrinks: s.shrinks(c), Resources: c.Resources.DeepCopy()}
			if a.Shrinks {
				s.do(a)
			} else {
				grow = append(grow, a)
			}
		}
	}
	s.out.Actions = append(s.out.Actions, grow...)
}

func (s *step) shrinks(c *v1.Container) bool {
	have := s.actuated[c.Name]
	for _, r := range resizable {
		x, y := have.Limits[r], c.Resources.Limits[r]
		if y.Cmp(x) < 0 {
			return true
		}
	}
	return false
}

func (e Resized) apply(s *step) {
	delete(s.resizes, e.Container)
	if e.Err != nil {
		s.resizeError = e.Err.Error()
		s.retries["resize/"+e.Container] = s.now.Add(retryInterval)
		s.record(v1.EventTypeWarning, "ResizeError", "", "Pod resize error: %s", s.resizeError)
		return
	}
	s.resizeError = ""
	s.actuated[e.Container] = e.Resources
	if !s.resizing() {
		s.record(v1.EventTypeNormal, "ResizeCompleted", "", "Pod resize completed")
	}
}

func (s *step) resizing() bool {
	for _, group := range [][]v1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range group {
			for j := range s.in.View.Containers {
				if inst := &s.in.View.Containers[j]; inst.Name == group[i].Name && len(s.resized(&group[i], inst)) > 0 {
					return true
				}
			}
		}
	}
	return false
}

// resizeCondition is PodResizeInProgress while a running container has other
// resources than its spec.
func (s *step) resizeCondition() *v1.PodCondition {
	if s.stage != Active || !s.resizing() {
		return nil
	}
	c := &v1.PodCondition{Type: v1.PodResizeInProgress, Status: v1.ConditionTrue, ObservedGeneration: s.pod.Generation}
	if old := findCondition(s.status.Conditions, v1.PodResizeInProgress); old != nil {
		c.ObservedGeneration = old.ObservedGeneration
	}
	if s.resizeError != "" {
		c.Reason, c.Message = v1.PodReasonError, s.resizeError
	}
	return c
}

// actualResources replaces in want, the spec's resources, those a running
// container does not have yet.
func (s *step) actualResources(inst *Container, want *v1.ResourceRequirements) {
	have, ok := s.actuated[inst.Name]
	if !ok {
		if inst.Resources == nil {
			return
		}
		have = *inst.Resources
	}
	replace := func(want, have v1.ResourceList) {
		for _, r := range resizable {
			if q, ok := have[r]; ok && want != nil {
				want[r] = q
			}
		}
	}
	replace(want.Requests, have.Requests)
	replace(want.Limits, have.Limits)
}

// resourceStatus sets the resources of the pod as a whole.
func (s *step) resourceStatus(status *v1.PodStatus) {
	opts := resourcehelper.PodResourcesOptions{}
	status.AllocatedResources = resourcehelper.PodRequests(s.pod, opts)
	status.Resources = &v1.ResourceRequirements{
		Requests: status.AllocatedResources.DeepCopy(),
		Limits:   resourcehelper.PodLimits(s.pod, opts),
	}
}
