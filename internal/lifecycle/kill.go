package lifecycle

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// kill is the end of one container under way: its preStop hook, then its turn
// among the others, then its stop signal, all within one grace period.
type kill struct {
	name    string
	by      time.Time // when the grace is over
	force   bool      // there is none
	hook    hookState
	stopAt  time.Time // when the Stop under way resorts to SIGKILL; zero: none is
	ordered bool      // wait for the containers that must end first
	restart bool
	base    time.Time // see forced
}

type hookState int

const (
	hookIdle hookState = iota
	hookRuns
	hookDone
)

// graceOf is the time a container (nil: the pod) is given to end, before any
// override by the pod's own end.
func (s *step) graceOf(c *v1.Container, probe ProbeKind) time.Duration {
	seconds := int64(minimumGrace / time.Second)
	switch {
	case s.pod.DeletionGracePeriodSeconds != nil:
		seconds = *s.pod.DeletionGracePeriodSeconds
	case s.pod.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *s.pod.Spec.TerminationGracePeriodSeconds
		if p := probeSpec(c, probe); p != nil && p.TerminationGracePeriodSeconds != nil {
			seconds = *p.TerminationGracePeriodSeconds
		}
	}
	return time.Duration(seconds) * time.Second
}

// beginKill puts a container on its way out, or hurries one that is.
func (s *step) beginKill(inst *Container, message string, grace time.Duration, restart bool) {
	by := s.now.Add(grace)
	if k, ok := s.kills[inst.ID]; ok {
		k.by, k.force = minTime(k.by, by), k.force || grace <= 0
		s.kills[inst.ID] = k
		return
	}
	if message == "" {
		message = fmt.Sprintf("Stopping container %s", inst.Name)
	}
	s.record(v1.EventTypeNormal, "Killing", inst.Name, "%s", message)
	k := kill{name: inst.Name, by: by, force: grace <= 0, restart: restart}
	if restart {
		k.base = s.previousEnd(inst)
	}
	s.kills[inst.ID] = k
}

// previousEnd is when the instance before this one ended.
func (s *step) previousEnd(inst *Container) time.Time {
	for _, c := range s.containers {
		if c.Name == inst.Name && c.ID != inst.ID && c.State == Exited {
			return c.FinishedAt
		}
	}
	return time.Time{}
}

// killAll ends every container of the pod in the order of termination, and
// reports whether any is left to wait for.
func (s *step) killAll(grace time.Duration) (busy bool) {
	ordered := s.hasSidecar()
	for i := range s.containers {
		inst := &s.containers[i]
		if !runs(*inst) {
			continue
		}
		busy = true
		s.beginKill(inst, "", grace, false)
		k := s.kills[inst.ID]
		k.ordered, k.restart = ordered, false
		s.kills[inst.ID] = k
	}
	return busy
}

func (s *step) hasSidecar() bool {
	for i := range s.pod.Spec.InitContainers {
		if podutil.IsRestartableInitContainer(&s.pod.Spec.InitContainers[i]) {
			return true
		}
	}
	return false
}

// driveKills takes every kill under way as far as it can go now.
func (s *step) driveKills() {
	for _, inst := range s.containers {
		k, ok := s.kills[inst.ID]
		if !ok || !runs(inst) {
			continue
		}
		s.kills[inst.ID] = s.driveKill(inst, k)
	}
}

func (s *step) driveKill(inst Container, k kill) kill {
	// Kubelet counts whole seconds.
	left := max(k.by.Sub(s.now)+time.Second-1, 0).Truncate(time.Second)
	if c := s.spec[k.name]; k.hook == hookIdle {
		k.hook = hookDone
		if c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && left > 0 {
			k.hook = hookRuns
			s.do(Action{Verb: PreStop, Container: k.name, ID: inst.ID, Grace: left})
		}
	}
	waiting := k.hook == hookRuns || k.ordered && !s.isTurnOf(k.name)
	if waiting && s.now.Before(k.by) {
		s.wake(k.by)
		return k
	}
	if !k.force {
		left = max(left, minimumGrace)
	}
	killAt := s.now.Add(left)
	if (k.stopAt.IsZero() || killAt.Before(k.stopAt.Add(-time.Second))) && !s.retryHolds(inst.ID) {
		k.stopAt = killAt
		s.do(Action{Verb: Stop, Container: k.name, ID: inst.ID, Grace: left})
	}
	return k
}

// isTurnOf reports whether all that must end before this container has ended:
// sidecars outlive the app containers and the sidecars started after them.
func (s *step) isTurnOf(name string) bool {
	sidecar := false
	for i := range s.pod.Spec.InitContainers {
		c := &s.pod.Spec.InitContainers[i]
		switch {
		case c.Name == name:
			sidecar = podutil.IsRestartableInitContainer(c)
		case sidecar && podutil.IsRestartableInitContainer(c) && s.isRunning(c.Name):
			return false
		}
	}
	if !sidecar {
		return true
	}
	for i := range s.pod.Spec.Containers {
		if s.isRunning(s.pod.Spec.Containers[i].Name) {
			return false
		}
	}
	return true
}

func (s *step) isRunning(name string) bool {
	for _, c := range s.containers {
		if c.Name == name && runs(c) {
			return true
		}
	}
	return false
}

// cancelStarts abandons the Starts under way and reports whether there are any.
func (s *step) cancelStarts() bool {
	for _, name := range sortedKeys(s.starts) {
		if st := s.starts[name]; !st.cancelled {
			st.cancelled = true
			s.starts[name] = st
			s.do(Action{Verb: CancelStart, Container: name})
		}
	}
	return len(s.starts) > 0
}

func (e PreStopped) apply(s *step) {
	if k, ok := s.kills[e.ID]; ok && k.hook == hookRuns {
		k.hook = hookDone
		s.kills[e.ID] = k
	}
}

func (e Stopped) apply(s *step) {
	if e.Err == nil {
		return // the view shows it
	}
	if k, ok := s.kills[e.ID]; ok {
		k.stopAt = time.Time{}
		s.kills[e.ID] = k
		s.retryLater(e.ID, e.Err)
	}
}

// resetAll kills and removes every container of a pod that one of them asked
// to restart as a whole: that one last, so that a node failing meanwhile still
// finds the reason.
func (s *step) resetAll() {
	if s.cancelStarts() {
		return
	}
	var sources, victims []*Container
	for _, group := range [][]v1.Container{s.pod.Spec.Containers, s.pod.Spec.InitContainers} {
		for i := range group {
			for j := range s.containers {
				inst := &s.containers[j]
				if inst.Name != group[i].Name {
					continue
				}
				if inst.State == Exited && asksToRestartAll(&group[i], inst.ExitCode) {
					sources = append(sources, inst)
				} else {
					victims = append(victims, inst)
				}
			}
		}
	}
	for _, inst := range victims {
		if runs(*inst) {
			s.beginKill(inst, "killing", minimumGrace, false)
		} else {
			s.removeContainer(inst, true)
		}
	}
	if len(victims) > 0 {
		return
	}
	// Unlike kubelet, whose pace is its relist, the machine would go round as
	// fast as containers exit: the crash back-off is the brake.
	for _, inst := range sources {
		if !s.removals[inst.ID] && s.crashHolds(s.spec[inst.Name]) {
			return
		}
	}
	for _, inst := range sources {
		if !s.removals[inst.ID] {
			s.raiseCrash(s.spec[inst.Name], inst)
		}
		s.removeContainer(inst, true)
	}
}

func asksToRestartAll(c *v1.Container, exitCode int32) bool {
	rule, ok := podutil.FindMatchingContainerRestartRule(*c, exitCode)
	return ok && rule.Action == v1.ContainerRestartRuleActionRestartAllContainers
}
