package lifecycle

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// probeResult is the verdict of one probe over one container.
type probeResult int

const (
	probeUnknown probeResult = iota
	probeSuccess
	probeFailure
)

// probeState counts one probe's outcomes towards its thresholds.
type probeState struct {
	result probeResult
	last   bool
	run    int32 // how many times in a row last was seen
	hold   bool  // no more probing of this container
}

func probeSpec(c *v1.Container, kind ProbeKind) *v1.Probe {
	if c == nil {
		return nil
	}
	switch kind {
	case Startup:
		return c.StartupProbe
	case Readiness:
		return c.ReadinessProbe
	case Liveness:
		return c.LivenessProbe
	}
	return nil
}

func (s *step) probeResult(id string, kind ProbeKind) probeResult {
	return s.health[id][kind].result
}

// startupResult is Success for a container that needs no startup probe.
func (s *step) startupResult(c *v1.Container, inst *Container) probeResult {
	if c.StartupProbe == nil {
		return probeSuccess
	}
	return s.probeResult(inst.ID, Startup)
}

func (s *step) setProbe(id string, kind ProbeKind, p probeState) {
	if s.health[id] == nil {
		s.health[id] = map[ProbeKind]probeState{}
	}
	s.health[id][kind] = p
}

func (e Probed) apply(s *step) {
	var c *v1.Container
	for _, inst := range s.in.View.Containers {
		if inst.ID == e.ID && inst.State == Running {
			c = s.spec[inst.Name]
		}
	}
	spec := probeSpec(c, e.Kind)
	p := s.health[e.ID][e.Kind]
	if spec == nil || p.hold {
		return
	}
	if p.run == 0 || p.last != e.Success {
		p.last, p.run = e.Success, 0
	}
	p.run++
	threshold, result := spec.FailureThreshold, probeFailure
	if e.Success {
		threshold, result = spec.SuccessThreshold, probeSuccess
	}
	if p.run >= threshold {
		p.result = result
		if e.Kind == Startup || e.Kind == Liveness && !e.Success {
			p.hold, p.run = true, 0
		}
	}
	s.setProbe(e.ID, e.Kind, p)
}

// adopt gives containers that an earlier engine knew as started or ready the
// benefit of that: a restart of the engine must not make a pod unready.
func (s *step) adopt() {
	old := map[string]*v1.ContainerStatus{}
	for _, list := range [][]v1.ContainerStatus{s.status.InitContainerStatuses, s.status.ContainerStatuses} {
		for i := range list {
			old[list[i].ContainerID] = &list[i]
		}
	}
	for _, inst := range s.containers {
		st := old[s.containerID(inst.ID)]
		if inst.State != Running || st == nil || s.health[inst.ID] != nil {
			continue
		}
		if st.Started != nil && *st.Started {
			s.setProbe(inst.ID, Startup, probeState{result: probeSuccess, hold: true})
		}
		if st.Ready {
			s.setProbe(inst.ID, Readiness, probeState{result: probeSuccess})
		}
	}
}

// applyProbes sets started and ready of every container.
func (s *step) applyProbes(status *v1.PodStatus) {
	for i := range status.InitContainerStatuses {
		st := &status.InitContainerStatuses[i]
		c := s.spec[st.Name]
		s.setStarted(c, st)
		if !isSidecar(c) {
			st.Ready = st.State.Terminated != nil && st.State.Terminated.ExitCode == 0
			continue
		}
		s.setReady(c, st)
	}
	for i := range status.ContainerStatuses {
		st := &status.ContainerStatuses[i]
		c := s.spec[st.Name]
		s.setStarted(c, st)
		s.setReady(c, st)
	}
}

func (s *step) setStarted(c *v1.Container, st *v1.ContainerStatus) {
	inst := s.latest(st.Name)
	started := st.State.Running != nil && inst != nil && s.startupResult(c, inst) == probeSuccess
	st.Started = &started
}

func (s *step) setReady(c *v1.Container, st *v1.ContainerStatus) {
	st.Ready = false
	if inst := s.latest(st.Name); *st.Started && inst != nil {
		st.Ready = c.ReadinessProbe == nil || s.probeResult(inst.ID, Readiness) == probeSuccess
	}
}

// probes lists the probes that shall run now. Startup comes first and alone;
// a pod that is ending is only asked whether it is still ready.
func (s *step) probes() []Probe {
	var probes []Probe
	if s.stage > Terminating {
		return nil
	}
	for _, inst := range s.containers {
		c := s.spec[inst.Name]
		if c == nil || inst.State != Running || !s.probed(c) {
			continue
		}
		add := func(kind ProbeKind) {
			spec := probeSpec(c, kind)
			if spec == nil || s.health[inst.ID][kind].hold {
				return
			}
			probes = append(probes, Probe{ID: inst.ID, Container: c.Name, Kind: kind,
				First: inst.StartedAt.Add(time.Duration(spec.InitialDelaySeconds) * time.Second)})
		}
		_, killing := s.kills[inst.ID]
		active := s.stage == Active && !killing
		if s.startupResult(c, &inst) != probeSuccess {
			if active {
				add(Startup)
			}
			continue
		}
		add(Readiness)
		if active {
			add(Liveness)
		}
	}
	return probes
}

// probed reports whether a container may have probes at all: app containers
// and sidecars.
func (s *step) probed(c *v1.Container) bool {
	for i := range s.pod.Spec.Containers {
		if s.pod.Spec.Containers[i].Name == c.Name {
			return true
		}
	}
	return isSidecar(c)
}
