package lifecycle

import (
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Stage is how far a pod's life has come. It only ever advances.
type Stage int

const (
	// Active: containers are started, restarted and watched.
	Active Stage = iota
	// Terminating: everything that runs is being ended.
	Terminating
	// Terminated: nothing runs any more; volumes are torn down.
	Terminated
	// Cleared: volumes are gone. What remains in the runtime is for logs and
	// exit codes, until the pod is deleted.
	Cleared
)

func (s Stage) String() string {
	return [...]string{"active", "terminating", "terminated", "cleared"}[s]
}

// State is the machine's memory from one step to the next. Its zero value is
// a pod never seen before, or one seen by an earlier engine whose Status is
// given. Only Step makes sense of it. It is lost when the engine restarts, as
// kubelet's is; back-offs then begin anew.
type State struct {
	stage Stage
	// status is what the last step found, shown what it published of that.
	status, shown *v1.PodStatus
	grace         *int64 // effective once terminating; only ever shrinks
	evicted       *Evicted
	pruned        bool                                // what the ended pod kept in the runtime is to go
	health        map[string]map[ProbeKind]probeState // by container ID

	volumes      volumeState
	sandboxRetry time.Time
	// replaced is the sandbox whose replacement was announced.
	replaced string
	// stoppedSandboxes were stopped by us, or needed no stop.
	stoppedSandboxes map[string]bool

	crashes  map[string]crash   // by container name
	pulls    map[string]pull    // by image
	failures map[string]failure // by container name
	starts   map[string]start   // Starts under way, by container name
	kills    map[string]kill    // by container ID, until the container is gone
	forced   map[string]forced  // to be restarted whatever the policy, by container name
	removals map[string]bool    // Removes under way, by container ID
	retries  map[string]time.Time
	sandbox  map[string]Verb // sandbox actions under way, by sandbox ID ("" for a creation)
	actuated map[string]v1.ResourceRequirements
	resizes  map[string]bool
	// resizeError is why the last Resize failed.
	resizeError string
}

// Stage tells how far the pod has come.
func (s State) Stage() Stage { return s.stage }

// Status is the status last published, nil before the first step.
func (s State) Status() *v1.PodStatus { return s.shown }

type volumeState struct {
	ready, busy, gone bool
	delay             time.Duration
	retry             time.Time
}

// start is a Start under way. before is the newest instance of the container
// when it was issued: a newer one is this start's, and not shown until the
// postStart hook is through, as kubelet does not see it earlier either.
type start struct {
	before    string
	cancelled bool
}

type failure struct {
	Failure
	at    time.Time
	retry time.Time // zero: the crash back-off decides
}

// forced is a restart that was decided when the container was killed.
type forced struct {
	id   string    // the killed instance
	base time.Time // what the first back-off check counts from; zero: don't wait
}

func (s State) clone() State {
	s.health = maps.Clone(s.health)
	for id, m := range s.health {
		s.health[id] = maps.Clone(m)
	}
	s.stoppedSandboxes = cloned(s.stoppedSandboxes)
	s.crashes = cloned(s.crashes)
	s.pulls = cloned(s.pulls)
	s.failures = cloned(s.failures)
	s.starts = cloned(s.starts)
	s.kills = cloned(s.kills)
	s.forced = cloned(s.forced)
	s.removals = cloned(s.removals)
	s.retries = cloned(s.retries)
	s.sandbox = cloned(s.sandbox)
	s.actuated = cloned(s.actuated)
	s.resizes = cloned(s.resizes)
	if s.health == nil {
		s.health = map[string]map[ProbeKind]probeState{}
	}
	return s
}

func cloned[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}
