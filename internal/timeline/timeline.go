// Package timeline tells the life of one pod: what became of it and of each
// of its containers, in order, with the time since it was created.
//
// It owns no pod and asks nobody: a [Builder] is fed with the pod's statuses
// and the sentences recorded about it (what the API calls Events), each with
// the time it was seen, and makes a [Timeline] of them at any moment. It
// promises the same timeline for the same history, that a state is told once
// however often it is seen, that a run nobody saw begin is told by its end,
// and that a long life stays short: repeats are counted, and the middle is
// left out when there is too much. A Builder is used by one goroutine.
//
// It is pure: its time is the caller's. Floor: 5, beside lifecycle; it knows
// the API's types and nothing of unipod.
package timeline

import (
	"encoding/json"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Record is a sentence about a pod or one of its containers: an engine's, or
// an API Event.
type Record struct {
	// Type is v1.EventTypeNormal or v1.EventTypeWarning.
	Type            string
	Reason, Message string
	// Container is empty when it is about the pod.
	Container string
}

// What happened, as an [Entry] has it. A record that is none of these is told
// under its own reason.
const (
	Created        = "Created"        // the pod
	Scheduled      = "Scheduled"      // it has a node
	SandboxReady   = "SandboxReady"   // its namespaces and addresses
	Pulling        = "Pulling"        // an image
	Pulled         = "Pulled"         // or it was there
	Waiting        = "Waiting"        // a container, for the reason in Text
	Started        = "Started"        // a container's process
	StartedUp      = "StartedUp"      // its startup probe has passed
	Ready          = "Ready"          // it or the pod
	NotReady       = "NotReady"       // no longer
	Unhealthy      = "Unhealthy"      // a probe failed
	Killing        = "Killing"        // a container is being ended
	Exited         = "Exited"         // a container; ExitCode and Reason tell how
	PhaseChanged   = "Phase"          // the pod's; Reason has it
	Resizing       = "Resizing"       // a resize is under way or waits
	RestartingAll  = "RestartingAll"  // a container asked for all to be restarted
	Disrupted      = "Disrupted"      // the node or somebody needs its place
	DeletionBegins = "DeletionBegins" // somebody deleted the pod
	Removed        = "Removed"        // nothing of it is left
)

// Entry is one thing that happened.
type Entry struct {
	Time  time.Time     `json:"time"`
	After time.Duration `json:"-"` // since the pod was created; "seconds" in JSON
	// Container is empty for the pod itself.
	Container string `json:"container,omitempty"`
	Event     string `json:"event"`
	// Text says it in words, on one line.
	Text string `json:"text"`
	// Warning: it is nothing one wishes a pod.
	Warning bool `json:"warning,omitempty"`
	// Recorded: it was told by a record, not by a status. Where both come by
	// ways of their own, its place is where it arrived.
	Recorded bool `json:"recorded,omitempty"`
	// Reason is Kubernetes' word: of a waiting or ended container, of a phase.
	Reason   string `json:"reason,omitempty"`
	ExitCode *int32 `json:"exitCode,omitempty"`
	// Restarts is which run of the container it is about, the first being 0.
	Restarts int32 `json:"restarts,omitempty"`
	// Count is how often it happened in a row, when more than once; Last is
	// when it did last.
	Count int       `json:"count,omitempty"`
	Last  time.Time `json:"last,omitzero"`
}

// MarshalJSON adds the time since creation, in seconds.
func (e Entry) MarshalJSON() ([]byte, error) {
	type plain Entry
	return json.Marshal(struct {
		Seconds float64 `json:"seconds"`
		plain
	}{e.After.Round(time.Millisecond).Seconds(), plain(e)})
}

// Roles of containers.
const (
	RoleInit      = "init"
	RoleSidecar   = "sidecar"
	RoleApp       = "app"
	RoleEphemeral = "ephemeral"
)

// Container is what became of one container.
type Container struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Restarts int32  `json:"restarts"`
	// State is "waiting", "running" or "terminated"; Reason belongs to it.
	State    string `json:"state"`
	Reason   string `json:"reason,omitempty"`
	ExitCode *int32 `json:"exitCode,omitempty"`
	// Runs are the stretches it ran for, as far as they were seen.
	Runs []Run `json:"runs,omitempty"`
}

// Run is one run of a container. End is zero while it lasts, ReadyAt when it
// never was ready.
type Run struct {
	Start    time.Time `json:"start"`
	ReadyAt  time.Time `json:"ready,omitzero"`
	End      time.Time `json:"end,omitzero"`
	ExitCode *int32    `json:"exitCode,omitempty"`
}

// Timeline is the life of a pod so far.
type Timeline struct {
	Namespace string      `json:"namespace"`
	Name      string      `json:"name"`
	UID       string      `json:"uid"`
	Created   time.Time   `json:"created"`
	End       time.Time   `json:"end"` // the last thing seen
	Phase     v1.PodPhase `json:"phase"`
	Reason    string      `json:"reason,omitempty"`
	Message   string      `json:"message,omitempty"`
	Restarts  int32       `json:"restarts"`
	// LeftOut is how many entries of its middle are missing.
	LeftOut    int         `json:"leftOut,omitempty"`
	Containers []Container `json:"containers"`
	Entries    []Entry     `json:"entries"`
}
