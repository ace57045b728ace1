package lifecycle

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// active brings the pod towards its spec: volumes, sandbox, then containers.
func (s *step) active(status *v1.PodStatus) {
	if !s.volumesReady() {
		return
	}
	if conditionTrue(status.Conditions, v1.AllContainersRestarting) {
		s.resetAll()
		s.driveKills()
		return
	}
	change := s.sandboxChange()
	if change.needed {
		s.replaceSandbox(change)
		s.driveKills()
		return
	}
	todo := s.decide(change.id)
	switch {
	case todo.killPod:
		s.killAll(s.graceOf(nil, ""))
	default:
		for _, start := range todo.starts {
			s.tryStart(start, change.id)
		}
	}
	s.driveKills()
	s.driveResizes(status)
	s.prune()
}

func (s *step) volumesReady() bool {
	return s.volumes.ready || s.volumeStep(PrepareVolumes)
}

// volumeStep issues an action on the volumes, unless one is under way or held
// back. It is never done at once.
func (s *step) volumeStep(verb Verb) (done bool) {
	v := &s.volumes
	switch {
	case v.busy:
	case s.now.Before(v.retry):
		s.wake(v.retry)
	default:
		v.busy = true
		s.do(Action{Verb: verb})
	}
	return false
}

// volumesAre takes the result of such an action in: then they are next, or
// what they were, to be tried again later and later.
func (s *step) volumesAre(next volumeState, err error) {
	if err == nil {
		s.volumes = next
		return
	}
	v := &s.volumes
	v.busy = false
	v.delay = min(max(2*v.delay, volumeRetryInitial), volumeRetryMax)
	v.retry = s.now.Add(v.delay)
}

func (e VolumesPrepared) apply(s *step) { s.volumesAre(volumeState{ready: true}, e.Err) }

// work is what the containers of an active pod need.
type work struct {
	killPod bool
	starts  []*v1.Container
}

// decide looks at every container of the pod in its sandbox.
func (s *step) decide(sandbox string) work {
	var w work
	for i := range s.pod.Spec.EphemeralContainers {
		name := s.pod.Spec.EphemeralContainers[i].Name
		// Ephemeral containers are never restarted.
		if s.latest(name) == nil && !s.starting(name) {
			w.starts = append(w.starts, s.spec[name])
		}
	}
	inits := s.decideInit(sandbox)
	if inits.failed {
		w.killPod = true
		return w
	}
	if !inits.done {
		w.starts = append(w.starts, inits.starts...)
		return w
	}
	keep := 0
	var mains []*v1.Container
	for i := range s.pod.Spec.Containers {
		c := &s.pod.Spec.Containers[i]
		switch s.decideMain(c) {
		case keepIt:
			keep++
		case startIt:
			mains = append(mains, c)
		}
	}
	if keep == 0 && len(mains) == 0 {
		// The sidecars must not keep the pod alive.
		w.killPod = true
		return w
	}
	w.starts = append(append(w.starts, inits.starts...), mains...)
	return w
}

type verdict int

const (
	leaveIt verdict = iota
	keepIt
	startIt
)

// decideMain decides on an app container. It begins the kill of one that must
// go; such a container counts as kept until it has ended.
func (s *step) decideMain(c *v1.Container) verdict {
	inst := s.latest(c.Name)
	if s.starting(c.Name) {
		return keepIt
	}
	if inst == nil || inst.State != Running {
		if inst != nil && inst.State == Unknown {
			s.killUnknown(c, inst, "Container is in %q state, try killing it before restart")
			return keepIt
		}
		if s.shouldRestart(c, inst) {
			return startIt
		}
		return leaveIt
	}
	if _, killing := s.kills[inst.ID]; killing {
		return keepIt
	}
	restart := s.pod.Spec.RestartPolicy != v1.RestartPolicyNever
	if c.RestartPolicy != nil {
		// The rules need an exit code, which a running container lacks.
		restart = *c.RestartPolicy != v1.ContainerRestartPolicyNever
	}
	var message string
	var kind ProbeKind
	switch {
	case inst.Changed:
		message, restart = fmt.Sprintf("Container %s definition changed", c.Name), true
	case s.probeResult(inst.ID, Liveness) == probeFailure:
		message, kind = fmt.Sprintf("Container %s failed liveness probe", c.Name), Liveness
	case s.probeResult(inst.ID, Startup) == probeFailure:
		message, kind = fmt.Sprintf("Container %s failed startup probe", c.Name), Startup
	case s.resizeNeedsRestart(c, inst):
		s.beginKill(inst, fmt.Sprintf("Container %s resize requires restart", c.Name), s.graceOf(c, ""), true)
		return keepIt
	default:
		return keepIt
	}
	if restart {
		message += ", will be restarted"
	}
	s.beginKill(inst, message, s.graceOf(c, kind), restart)
	return keepIt
}

func (s *step) starting(name string) bool {
	_, ok := s.starts[name]
	return ok
}

// killUnknown ends a container of which nobody knows whether it runs, lest
// there be two of it.
func (s *step) killUnknown(c *v1.Container, inst *Container, format string) {
	if _, killing := s.kills[inst.ID]; !killing {
		s.beginKill(inst, fmt.Sprintf(format, inst.State), s.graceOf(c, ""), true)
	}
}

// shouldRestart applies the restart policies to a container that does not run.
func (s *step) shouldRestart(c *v1.Container, inst *Container) bool {
	if s.pod.DeletionTimestamp != nil || s.stage != Active {
		return false
	}
	if inst == nil || inst.State == Unknown || inst.State == Created {
		return true
	}
	if inst.State == Running {
		return false
	}
	if f, ok := s.forced[c.Name]; ok && f.id == inst.ID {
		return true
	}
	return podutil.ContainerShouldRestart(*c, s.pod.Spec, inst.ExitCode)
}

// tryStart issues a Start unless a back-off holds it.
func (s *step) tryStart(c *v1.Container, sandbox string) {
	if s.starting(c.Name) || s.crashHolds(c) || s.failureHolds(c) || s.pullHolds(c) {
		return
	}
	st := start{}
	attempt := uint32(0)
	if inst := s.latest(c.Name); inst != nil {
		st.before = inst.ID
		attempt = uint32(inst.RestartCount) + 1
		if inst.State == Exited {
			s.raiseCrash(c, inst)
		}
	}
	delete(s.forced, c.Name)
	s.starts[c.Name] = st
	s.actuated[c.Name] = *c.Resources.DeepCopy()
	s.do(Action{Verb: Start, Container: c.Name, SandboxID: sandbox, Attempt: attempt})
}

// crashBase is the moment the crash back-off counts from: the end of the
// latest instance. For a container we killed to restart it, the first check
// counts from the end of the instance before, so that it is back at once
// unless it keeps failing.
func (s *step) crashBase(name string) (inst *Container, base time.Time, ok bool) {
	inst = s.latest(name)
	if inst == nil || inst.State != Exited {
		return nil, time.Time{}, false
	}
	if f, forced := s.forced[name]; forced && f.id == inst.ID && s.crashes[name].announced != inst.ID {
		return inst, f.base, !f.base.IsZero()
	}
	return inst, inst.FinishedAt, true
}

func (s *step) crashHolds(c *v1.Container) bool {
	inst, base, ok := s.crashBase(c.Name)
	if !ok {
		return false
	}
	b := s.crashes[c.Name]
	if b.key != crashKey(c) {
		return false
	}
	until, holds := b.holds(base, s.now)
	if !holds {
		return false
	}
	if shown := inst.FinishedAt.Add(settle); s.now.Before(shown) {
		s.wake(minTime(shown, until))
		return true
	}
	if b.announced != inst.ID {
		b.announced = inst.ID
		s.crashes[c.Name] = b
		s.record(v1.EventTypeWarning, "BackOff", c.Name, "Back-off restarting failed container %s in pod %s", c.Name, describe(s.pod))
		s.failures[c.Name] = failure{at: s.now, Failure: Failure{
			Reason:  ReasonCrashLoopBackOff,
			Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", b.delay, c.Name, describe(s.pod)),
		}}
		s.restatus = true
		// Announced, it waits from its own end.
		if until, holds = b.holds(inst.FinishedAt, s.now); !holds {
			return false
		}
	}
	s.wake(until)
	return true
}

func (s *step) raiseCrash(c *v1.Container, inst *Container) {
	_, base, ok := s.crashBase(c.Name)
	if !ok {
		return
	}
	b := s.crashes[c.Name]
	if b.key != crashKey(c) {
		b = crash{key: crashKey(c)}
	}
	b.backoff = b.next(base, s.now)
	s.crashes[c.Name] = b
}

// failureHolds holds a start back for kubelet's retry interval after it failed
// for a reason other than a crash or a pull.
func (s *step) failureHolds(c *v1.Container) bool {
	f := s.failures[c.Name]
	if f.retry.IsZero() || !s.now.Before(f.retry) {
		return false
	}
	if inst := s.latest(c.Name); inst != nil && inst.State == Exited && inst.FinishedAt.After(f.at.Add(-settle)) {
		return false // it did run, so the crash back-off has the say
	}
	s.wake(f.retry)
	return true
}

func (s *step) pullHolds(c *v1.Container) bool {
	p, ok := s.pulls[c.Image]
	if !ok {
		return false
	}
	until, holds := p.holds(p.last, s.now)
	if !holds {
		return false
	}
	f := s.failures[c.Name]
	if f.Pull && f.Reason != ReasonImagePullBackOff && s.now.Before(f.at.Add(settle)) {
		s.wake(minTime(f.at.Add(settle), until))
		return true
	}
	if f.Reason != ReasonImagePullBackOff {
		message := fmt.Sprintf("Back-off pulling image %q", c.Image)
		s.record(v1.EventTypeNormal, "BackOff", c.Name, "%s", message)
		s.record(v1.EventTypeWarning, "Failed", c.Name, "Error: %s", ReasonImagePullBackOff)
		s.failures[c.Name] = failure{at: s.now, Failure: Failure{
			Reason: ReasonImagePullBackOff, Message: message + ": " + p.message, Pull: true,
		}}
		s.restatus = true
	}
	s.wake(until)
	return true
}

func (e Started) apply(s *step) {
	delete(s.starts, e.Container)
	if e.Failure == nil {
		delete(s.failures, e.Container)
		if c := s.spec[e.Container]; c != nil {
			delete(s.pulls, c.Image)
		}
		return
	}
	f := failure{Failure: *e.Failure, at: s.now}
	if id := e.Failure.Kill; id != "" {
		s.beginKill(&Container{ID: id, Name: e.Container}, "FailedPostStartHook", s.graceOf(s.spec[e.Container], ""), false)
	}
	if e.Failure.Pull {
		if c := s.spec[e.Container]; c != nil {
			p := s.pulls[c.Image]
			p.backoff = p.next(s.now, s.now)
			p.message = e.Failure.Reason + ": " + e.Failure.Message
			s.pulls[c.Image] = p
		}
	} else {
		f.retry = s.now.Add(retryInterval)
	}
	s.failures[e.Container] = f
}

func (e ImagePulled) apply(s *step) { delete(s.pulls, e.Image) }

func (e ObjectsChanged) apply(s *step) {
	s.volumes.retry, s.volumes.delay = time.Time{}, 0
	for name, f := range s.failures {
		if f.Reason == ReasonCreateConfigError {
			f.retry = s.now
			s.failures[name] = f
		}
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
