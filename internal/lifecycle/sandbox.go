package lifecycle

import (
	v1 "k8s.io/api/core/v1"
)

// sandboxChange says whether the pod needs a sandbox other than it has.
type sandboxChange struct {
	needed  bool
	attempt uint32
	id      string // the present sandbox, if any
	why     string // the message of PodReadyToStartContainers
}

func (s *step) sandboxChange() sandboxChange {
	sandboxes := s.in.View.Sandboxes
	if len(sandboxes) == 0 {
		return sandboxChange{needed: true, why: "no pod sandbox exists"}
	}
	ready := 0
	for _, sb := range sandboxes {
		if sb.Ready {
			ready++
		}
	}
	sb := sandboxes[0]
	next := sandboxChange{needed: true, attempt: sb.Attempt + 1, id: sb.ID}
	switch {
	case ready > 1:
		next.why = "multiple pod sandboxes are ready and need to be reconciled"
	case !sb.Ready:
		next.why = "pod sandbox is not ready"
	case sb.HostNetwork != s.pod.Spec.HostNetwork:
		next.why = "network namespace mode changed and sandbox needs to be recreated"
	case !sb.HostNetwork && len(sb.IPs) == 0:
		next.why = "pod sandbox has no IP address"
	default:
		return sandboxChange{attempt: sb.Attempt, id: sb.ID}
	}
	return next
}

// replaceSandbox ends what is left of the old sandbox and makes a new one,
// from the first init container on; or only the former, when the pod has
// nothing left to run.
func (s *step) replaceSandbox(change sandboxChange) {
	if _, busy := s.sandbox[""]; busy {
		return
	}
	worthwhile := s.worthASandbox(change)
	if worthwhile && change.id != "" && s.replaced != change.id {
		s.replaced = change.id
		s.record(v1.EventTypeNormal, "SandboxChanged", "", "Pod sandbox changed, it will be killed and re-created.")
	}
	if s.cancelStarts() || s.killAll(s.graceOf(nil, "")) || s.stopSandboxes() || !worthwhile {
		return
	}
	if s.purge(s.pod.Spec.InitContainers) {
		return
	}
	if s.now.Before(s.sandboxRetry) {
		s.wake(s.sandboxRetry)
		return
	}
	s.sandbox[""] = CreateSandbox
	s.do(Action{Verb: CreateSandbox, Attempt: change.attempt})
}

// worthASandbox reports whether there is anything to start in a new sandbox.
func (s *step) worthASandbox(change sandboxChange) bool {
	if s.pod.Spec.RestartPolicy == v1.RestartPolicyNever && change.attempt != 0 && len(s.containers) != 0 {
		return false
	}
	started := false
	for i := range s.pod.Spec.Containers {
		c := &s.pod.Spec.Containers[i]
		once := s.pod.Spec.RestartPolicy == v1.RestartPolicyOnFailure
		if c.RestartPolicy != nil {
			once = *c.RestartPolicy == v1.ContainerRestartPolicyOnFailure
		}
		inst := s.latest(c.Name)
		if !once || inst == nil || inst.State != Exited || inst.ExitCode != 0 {
			return true
		}
		started = true
	}
	return !started
}

func (e SandboxCreated) apply(s *step) {
	delete(s.sandbox, "")
	s.sandboxRetry = s.now
	if e.Err != nil {
		s.sandboxRetry = s.now.Add(retryInterval)
	}
}

// stopSandboxes stops every sandbox not stopped yet and reports whether any is
// left to wait for.
func (s *step) stopSandboxes() (busy bool) {
	for _, sb := range s.in.View.Sandboxes {
		if s.stoppedSandboxes[sb.ID] {
			continue
		}
		busy = true
		s.sandboxAction(StopSandbox, sb.ID)
	}
	return busy
}

// sandboxAction issues an action unless one is under way or held back.
func (s *step) sandboxAction(verb Verb, id string) {
	if _, under := s.sandbox[id]; under || s.retryHolds(id) {
		return
	}
	s.sandbox[id] = verb
	s.do(Action{Verb: verb, ID: id})
}

// retryHolds holds back what failed on a runtime object a moment ago.
func (s *step) retryHolds(id string) bool {
	at, ok := s.retries[id]
	if !ok {
		return false
	}
	if s.now.Before(at) {
		s.wake(at)
		return true
	}
	delete(s.retries, id)
	return false
}

func (s *step) retryLater(id string, err error) {
	if err != nil {
		s.retries[id] = s.now.Add(settle)
	}
}

func (e SandboxStopped) apply(s *step) {
	delete(s.sandbox, e.ID)
	if s.retryLater(e.ID, e.Err); e.Err == nil {
		s.stoppedSandboxes[e.ID] = true
	}
}

func (e SandboxRemoved) apply(s *step) {
	delete(s.sandbox, e.ID)
	s.retryLater(e.ID, e.Err)
}

// purge removes every instance of the containers and reports whether any is
// left to wait for.
func (s *step) purge(containers []v1.Container) (busy bool) {
	names := map[string]bool{}
	for _, c := range containers {
		names[c.Name] = true
	}
	for i := range s.containers {
		if inst := &s.containers[i]; names[inst.Name] {
			busy = true
			s.removeContainer(inst, false)
		}
	}
	return busy
}

func (s *step) removeContainer(inst *Container, keepLogs bool) {
	if s.removals[inst.ID] || s.retryHolds(inst.ID) {
		return
	}
	s.removals[inst.ID] = true
	s.do(Action{Verb: Remove, ID: inst.ID, Container: inst.Name, Attempt: uint32(inst.RestartCount), KeepLogs: keepLogs})
}

func (e ContainerRemoved) apply(s *step) {
	delete(s.removals, e.ID)
	s.retryLater(e.ID, e.Err)
}

// prune forgets what is older than a container's last two instances: the one
// that counts and the one before it, for its logs and its last state.
func (s *step) prune() {
	count := map[string]int{}
	for i := range s.containers {
		inst := &s.containers[i]
		count[inst.Name]++
		// One that never started, because an engine was killed, left nothing
		// worth keeping.
		if count[inst.Name] > 2 && inst.State == Exited || count[inst.Name] > 1 && inst.State == Created {
			s.removeContainer(inst, false)
		}
	}
}
