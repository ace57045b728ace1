// Package fakecri is a container runtime in memory, for tests of what stands
// above the CRI line. It keeps the CRI's contract as far as the engine relies
// on it (states, attempts, errors, events, idempotence) on a clock the test
// moves, and does what a test's [Script] says: containers that exit by
// themselves, ignore their stop signal, fail to be created, images that can't
// be pulled.
//
// It is safe for concurrent use. Nothing of it runs between calls but the
// clock's timers, so [Runtime.Close] leaves nothing behind.
//
// Floor: the line, beside package cri. Only tests import it.
package fakecri

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
)

var _ cri.Service = (*Runtime)(nil)

// Run says how one run of a container goes.
type Run struct {
	// ExitAfter ends the run by itself with Code; zero runs until stopped.
	ExitAfter time.Duration
	Code      int32
	// Reason is the runtime's word for the exit; empty means Completed or
	// Error by the code.
	Reason string
	// OnStop is how long the process takes to end after its stop signal, and
	// StopCode its code; Deaf ignores the signal until it is killed.
	OnStop   time.Duration
	StopCode int32
	Deaf     bool
	// CreateError and StartError make those calls fail.
	CreateError, StartError error
}

// Runtime is the fake. Its fields may be set before use.
type Runtime struct {
	// Scripts holds, by container name, how its runs go one after the other;
	// the last one repeats. Containers without a script run until stopped.
	Scripts map[string][]Run
	// Pull answers pulls; nil pulls everything.
	Pull func(image string) error
	// PullTime is how long a pull takes.
	PullTime time.Duration
	// Sandbox answers sandbox creations; nil creates all.
	Sandbox func(attempt uint32) error
	// OnExec answers ExecSync; nil succeeds.
	OnExec func(container string, cmd []string) (output string, code int32, err error)
	// PodStats and ContainerUsage answer the lists of figures; nil makes them
	// unimplemented. FsInfo answers ImageFsInfo likewise.
	PodStats       func() []*runtimeapi.PodSandboxStats
	ContainerUsage func() []*runtimeapi.ContainerStats
	FsInfo         *runtimeapi.ImageFsInfoResponse
	// NoEvents makes ContainerEvents unimplemented, as old runtimes have it.
	NoEvents bool

	clock clock.WithDelayedExecution

	mu         sync.Mutex
	serial     int
	sandboxes  map[string]*sandbox
	containers map[string]*container
	images     map[string]*runtimeapi.Image
	runs       map[string]int // by pod UID and container name
	listeners  map[chan *runtimeapi.ContainerEventResponse]bool
	calls      []string
}

type sandbox struct {
	status *runtimeapi.PodSandboxStatus
	config *runtimeapi.PodSandboxConfig
}

type container struct {
	status  *runtimeapi.ContainerStatus
	sandbox string
	run     Run
	timer   clock.Timer
	exited  chan struct{}
}

// New returns an empty runtime on a clock.
func New(clk clock.WithDelayedExecution) *Runtime {
	return &Runtime{
		Scripts: map[string][]Run{}, clock: clk,
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{},
		images: map[string]*runtimeapi.Image{}, runs: map[string]int{},
		listeners: map[chan *runtimeapi.ContainerEventResponse]bool{},
	}
}

// Close stops the timers of what still runs.
func (r *Runtime) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.timer != nil {
			c.timer.Stop()
		}
	}
}

// Calls returns and forgets the calls that changed something, in order, as
// "Verb object".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *Runtime) called(format string, args ...any) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

// Exit ends the newest running instance of a container by its own doing and
// reports whether there was one.
func (r *Runtime) Exit(name string, code int32, reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.status.Metadata.Name == name && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(c, code, reason)
			return true
		}
	}
	return false
}

// KillSandboxes ends every sandbox with all in it, as a reboot does.
func (r *Runtime) KillSandboxes() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.sandboxes {
		s.status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		r.event(id, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	for _, c := range r.containers {
		if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(c, 137, "Error")
		}
	}
}

// Counts tells how many sandboxes and containers there are.
func (r *Runtime) Counts() (sandboxes, containers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes), len(r.containers)
}

// Container returns the status of the newest instance of a container, nil if
// there is none.
func (r *Runtime) Container(name string) *runtimeapi.ContainerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var newest *runtimeapi.ContainerStatus
	for _, c := range r.containers {
		if s := c.status; s.Metadata.Name == name && (newest == nil || s.CreatedAt > newest.CreatedAt) {
			newest = s
		}
	}
	return clone(newest)
}

// exit ends a container. r.mu is held.
func (r *Runtime) exit(c *container, code int32, reason string) {
	s := c.status
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return
	}
	if reason == "" {
		reason = "Error"
		if code == 0 {
			reason = "Completed"
		}
	}
	s.State, s.ExitCode, s.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, code, reason
	s.FinishedAt = r.now()
	if c.timer != nil {
		c.timer.Stop()
	}
	close(c.exited)
	r.event(c.sandbox, s.Id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// now is the time in nanoseconds, never the same twice: order of creation is
// read from it.
func (r *Runtime) now() int64 {
	r.serial++
	return r.clock.Now().UnixNano() + int64(r.serial)
}

// event tells the listeners. r.mu is held.
func (r *Runtime) event(sandboxID, id string, kind runtimeapi.ContainerEventType) {
	ev := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: r.clock.Now().UnixNano()}
	if s := r.sandboxes[sandboxID]; s != nil {
		ev.PodSandboxStatus = clone(s.status)
	}
	for l := range r.listeners {
		l <- ev
	}
}

// ContainerEvents implements cri.Runtime.
func (r *Runtime) ContainerEvents(ctx context.Context, subscribed func(), each func(*runtimeapi.ContainerEventResponse) error) error {
	if r.NoEvents {
		return unimplemented("GetContainerEvents")
	}
	events := make(chan *runtimeapi.ContainerEventResponse, 1<<16)
	r.mu.Lock()
	r.listeners[events] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.listeners, events)
		r.mu.Unlock()
	}()
	if subscribed != nil {
		subscribed()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev := <-events:
			if err := each(ev); err != nil {
				return err
			}
		}
	}
}

func notFound(what, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", what, id)
}

func unimplemented(what string) error {
	return status.Errorf(codes.Unimplemented, "%s is not simulated", what)
}
