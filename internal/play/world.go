package play

import (
	"context"

	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/timeline"
)

// A World is where the objects of one play live.
type World interface {
	// Create makes the objects. What was made before an error stays.
	Create(ctx context.Context) error
	// Watch tells what becomes of the objects and of the pods that come of
	// them, until ctx ends. It is called once, before Create.
	Watch(ctx context.Context) <-chan Event
	// Delete removes the objects gracefully, and returns when nothing is left
	// and Watch has told so.
	Delete(ctx context.Context) error
	// Kill makes a Delete that is under way end at once.
	Kill()
}

// EventType says what an [Event] tells.
type EventType int

const (
	// PodChanged: Pod carries its new status.
	PodChanged EventType = iota
	// PodRemoved: Pod is gone.
	PodRemoved
	// PodRecorded: Record is a sentence about Pod, of which at least the name
	// and UID are known.
	PodRecorded
	// Recorded: Record is a sentence about another object, named by Of.
	Recorded
	// JobEnded: the Job named by Of has.
	JobEnded
)

// Event is one change in a World. Pod must not be modified.
type Event struct {
	Type EventType
	// Of is the key of the object of the play that it is about or that the pod
	// came of: "Deployment default/web".
	Of     string
	Pod    *v1.Pod
	Record *timeline.Record
	Failed bool // the Job has
}
