package lifecycle

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

func isSidecar(c *v1.Container) bool { return podutil.IsRestartableInitContainer(c) }

// inits is what the init containers need.
type inits struct {
	done   bool // the app containers' turn
	failed bool // the pod can't be initialized any more
	starts []*v1.Container
}

// initializedInSandbox reports whether an app container was ever created in
// the present sandbox, which means that every init container is through.
func (s *step) initializedInSandbox() bool {
	sandbox := s.activeSandbox()
	if sandbox == "" {
		return false
	}
	for i := range s.pod.Spec.Containers {
		if s.latestIn(sandbox, s.pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	return false
}

// decideInit walks the init containers from the last to the first, because
// those completed long ago may have been removed: the last one found tells how
// far the pod has come. Before it only sidecars matter, which are kept
// running.
func (s *step) decideInit(sandbox string) inits {
	all := s.pod.Spec.InitContainers
	if len(all) == 0 {
		return inits{done: true}
	}
	var in inits
	in.done = s.initializedInSandbox()
	passed := in.done // something after this one has been seen
	for i := len(all) - 1; i >= 0; i-- {
		c := &all[i]
		inst := s.latestIn(sandbox, c.Name)
		if s.starting(c.Name) {
			passed = true
			continue
		}
		if inst == nil {
			if passed && isSidecar(c) {
				in.starts = append(in.starts, c)
			}
			continue
		}
		if passed && !isSidecar(c) {
			continue
		}
		next := s.decideOneInit(c, inst)
		switch {
		case next.failed:
			return inits{failed: true}
		case next.through && i == len(all)-1:
			in.done = true
		case next.through && !passed:
			in.starts = append(in.starts, &all[i+1])
		}
		if next.start {
			in.starts = append(in.starts, c)
		}
		passed = true
	}
	if !passed {
		in.starts = append(in.starts, &all[0])
	}
	slices.Reverse(in.starts)
	return in
}

// initVerdict is what one init container needs. through: its successor may
// start.
type initVerdict struct{ through, start, failed bool }

func (s *step) decideOneInit(c *v1.Container, inst *Container) initVerdict {
	switch inst.State {
	case Created:
		// Creating and starting are one step, so starting it has failed.
		return initVerdict{start: true}
	case Running:
		if isSidecar(c) {
			return s.decideSidecar(c, inst)
		}
		return initVerdict{}
	case Exited:
		switch {
		case isSidecar(c):
			return initVerdict{start: true}
		case inst.ExitCode == 0:
			return initVerdict{through: true}
		case s.shouldRestart(c, inst):
			return initVerdict{start: true}
		}
		return initVerdict{failed: true}
	}
	again := s.pod.Spec.RestartPolicy != v1.RestartPolicyNever
	if c.RestartPolicy != nil {
		again = *c.RestartPolicy != v1.ContainerRestartPolicyNever
	}
	if !again {
		return initVerdict{failed: true}
	}
	s.killUnknown(c, inst, "Init container is in %q state, try killing it before restart")
	return initVerdict{}
}

// decideSidecar decides on a running restartable init container. Its startup
// probe, not its liveness probe, lets the next container start.
func (s *step) decideSidecar(c *v1.Container, inst *Container) initVerdict {
	if _, killing := s.kills[inst.ID]; killing {
		return initVerdict{}
	}
	switch s.startupResult(c, inst) {
	case probeFailure:
		s.beginKill(inst, fmt.Sprintf("Init container %s failed startup probe", c.Name), s.graceOf(c, Startup), true)
		return initVerdict{}
	case probeUnknown:
		return initVerdict{}
	}
	switch {
	case inst.Changed:
		s.beginKill(inst, fmt.Sprintf("Init container %s definition changed", c.Name), s.graceOf(c, ""), true)
	case s.probeResult(inst.ID, Liveness) == probeFailure:
		s.beginKill(inst, fmt.Sprintf("Init container %s failed liveness probe", c.Name), s.graceOf(c, Liveness), true)
	case s.resizeNeedsRestart(c, inst):
		s.beginKill(inst, fmt.Sprintf("Container %s resize requires restart", c.Name), s.graceOf(c, ""), true)
	}
	return initVerdict{through: true}
}
