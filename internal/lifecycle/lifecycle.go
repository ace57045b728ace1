// Package lifecycle decides what becomes of a pod. It is a pure function:
// [Step] takes the pod, what the runtime shows of it, what has happened since
// the last step, the machine's memory and the time, and returns the actions to
// carry out, the status to publish and the moment to be woken at. It does no
// I/O, starts no goroutine, reads no clock, and what it is given it never
// modifies; equal inputs give equal outputs.
//
// The semantics, words and formats are kubelet's (k8s.io/kubernetes v1.37,
// pkg/kubelet: kuberuntime_manager.go computePodActions,
// kuberuntime_container.go, kuberuntime_termination_order.go, status/,
// prober/, kubelet_pods.go, pod_workers.go). Two things differ in form. Where
// kubelet blocks a pod's worker while it pulls, starts or stops, the machine
// issues an action, remembers it as under way, and decides nothing about its
// subject until the result arrives as an event; so one slow container never
// holds up another. And where kubelet is woken by its one-second relist, the
// machine says itself when it wants to be asked again.
//
// Floor 5: imports Kubernetes' API types and helpers only.
package lifecycle

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// Input is everything a step looks at.
type Input struct {
	Now time.Time
	// Pod is what is wanted: spec and metadata, defaulted. Its Status holds
	// the conditions and the phase others have given it; the machine's own
	// past is in State. DeletionTimestamp asks for the pod's end,
	// DeletionGracePeriodSeconds says how long it may take.
	Pod *v1.Pod
	// Untold: how the pod ended is known here only. What the runtime holds of
	// a pod that has ended, the exit codes, stays until it isn't.
	Untold bool
	// View is the runtime as it is now, that is, looked at after the last of
	// Events.
	View View
	// Events are the results of earlier actions and the probes' outcomes, in
	// the order they came about.
	Events []Event
	// HostIPs are the node's addresses, the primary one first.
	HostIPs []string
}

// View is what the runtime shows of a pod.
type View struct {
	// Runtime names the runtime: the scheme of container IDs.
	Runtime string
	// Sandboxes and Containers are ordered newest first.
	Sandboxes  []Sandbox
	Containers []Container
}

// Sandbox is a pod sandbox in the runtime.
type Sandbox struct {
	ID          string
	Attempt     uint32
	Ready       bool
	HostNetwork bool
	IPs         []string
	CreatedAt   time.Time
}

// ContainerState is the CRI's.
type ContainerState int

const (
	Created ContainerState = iota
	Running
	Exited
	Unknown
)

func (s ContainerState) String() string {
	return [...]string{"created", "running", "exited", "unknown"}[s]
}

// Container is a container in the runtime.
type Container struct {
	ID, Name  string
	SandboxID string
	State     ContainerState
	// CreatedAt, StartedAt and FinishedAt as far as State has them.
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	// Reason and Message explain an exit: the runtime's own, the message
	// completed by the termination message.
	Reason, Message string
	Image, ImageRef string
	RestartCount    int32
	// Hash identifies the spec it was created from. Changed: that is not the
	// one the pod has now.
	Hash       uint64
	Changed    bool
	Resources  *v1.ResourceRequirements // as the runtime reports them, nil if it doesn't
	User       *v1.ContainerUser
	StopSignal *v1.Signal
}

// Output is what a step decided.
type Output struct {
	Actions []Action
	Records []Record
	Status  v1.PodStatus
	// Probes are the probes to be running from now on; those not listed stop.
	Probes []Probe
	// WakeAt is when to step again although nothing happens; zero for never.
	WakeAt time.Time
	// Ended: no container runs and none will.
	Ended bool
	// Removed: nothing of the pod is left in the runtime; forget it.
	Removed bool
}

// Record is a sentence for the pod's event log, in kubelet's words.
type Record struct {
	Type, Reason, Message string
	Container             string // empty for the pod itself
}

// Verb says what an [Action] does.
type Verb string

const (
	// PrepareVolumes makes the pod's directories and volumes. → [VolumesPrepared]
	PrepareVolumes Verb = "PrepareVolumes"
	// TearDownVolumes undoes that. → [VolumesTornDown]
	TearDownVolumes Verb = "TearDownVolumes"
	// CreateSandbox with Attempt. → [SandboxCreated]
	CreateSandbox Verb = "CreateSandbox"
	// StopSandbox ends all in sandbox ID and frees its network. → [SandboxStopped]
	StopSandbox Verb = "StopSandbox"
	// RemoveSandbox forgets sandbox ID with the containers in it. → [SandboxRemoved]
	RemoveSandbox Verb = "RemoveSandbox"
	// Start pulls the image of Container if need be, creates it in sandbox
	// SandboxID with Attempt as its restart count, starts it and runs its
	// postStart hook. → [Started]
	Start Verb = "Start"
	// CancelStart abandons a Start under way: the pod is to end.
	// → the Started of that Start, soon
	CancelStart Verb = "CancelStart"
	// PreStop runs the preStop hook of Container in ID, for Grace at most. → [PreStopped]
	PreStop Verb = "PreStop"
	// Stop ends container ID: its stop signal, SIGKILL after Grace. A Stop
	// under way for the same container is replaced. → [Stopped]
	Stop Verb = "Stop"
	// Remove forgets the exited container ID, run number Attempt, and its logs
	// unless KeepLogs. → [ContainerRemoved]
	Remove Verb = "Remove"
	// Resize gives container ID in SandboxID the Resources of its spec;
	// Shrinks says that they are less than it has. → [Resized]
	Resize Verb = "Resize"
)

// Action is one thing to do. Actions of one step may be done at the same time.
// Each is answered by the event named at its verb, once the runtime shows its
// effect.
type Action struct {
	Verb      Verb
	Container string // name in the pod's spec
	ID        string // of a container or sandbox in the runtime
	SandboxID string
	Attempt   uint32
	Grace     time.Duration
	KeepLogs  bool
	Shrinks   bool
	Resources *v1.ResourceRequirements
}

// Event is what happened to an action or a probe.
type Event interface{ apply(*step) }

type (
	// VolumesPrepared answers PrepareVolumes.
	VolumesPrepared struct{ Err error }
	// VolumesTornDown answers TearDownVolumes.
	VolumesTornDown struct{ Err error }
	// SandboxCreated answers CreateSandbox.
	SandboxCreated struct{ Err error }
	// SandboxStopped answers StopSandbox.
	SandboxStopped struct {
		ID  string
		Err error
	}
	// SandboxRemoved answers RemoveSandbox.
	SandboxRemoved struct {
		ID  string
		Err error
	}
	// Started answers Start. Failure is nil when the container runs and its
	// postStart hook has succeeded.
	Started struct {
		Container string
		Failure   *Failure
	}
	// PreStopped answers PreStop, whether the hook succeeded or not.
	PreStopped struct{ ID string }
	// Stopped answers Stop.
	Stopped struct {
		ID  string
		Err error
	}
	// ContainerRemoved answers Remove.
	ContainerRemoved struct {
		ID  string
		Err error
	}
	// Resized answers Resize.
	Resized struct {
		Container string
		Resources v1.ResourceRequirements
		Err       error
	}
	// Probed is one probe's outcome.
	Probed struct {
		ID      string // the container's
		Kind    ProbeKind
		Success bool
	}
	// ImagePulled tells that Image has become present, whoever pulled it:
	// there is no reason to wait any longer.
	ImagePulled struct{ Image string }
	// ObjectsChanged tells that an object the pod may refer to has changed:
	// volumes and configurations that failed are tried again at once.
	ObjectsChanged struct{}
	// Evicted ends the pod as failed, with this reason and message, within
	// Grace seconds (nil: the pod's own). A pod that has ended by then is left
	// as it is.
	Evicted struct {
		Reason, Message string
		Grace           *int64
		Condition       *v1.PodCondition // DisruptionTarget, if any
		// Rejected: the node never took the pod in; its status says that and
		// nothing of containers.
		Rejected bool
	}
	// Prune has what an ended pod keeps in the runtime, for logs and exit
	// codes, removed before the pod is deleted: the node needs the room.
	Prune struct{}
)

// Failure is why a container did not start, in kubelet's words.
type Failure struct {
	Reason, Message string
	// Pull: pulling failed, the image back-off applies.
	Pull bool
	// Kill is the container that runs nevertheless and must be ended: its
	// postStart hook failed.
	Kill string
}

// The reasons a start fails for.
const (
	ReasonErrImagePull       = "ErrImagePull"
	ReasonImagePullBackOff   = "ImagePullBackOff"
	ReasonErrImageNeverPull  = "ErrImageNeverPull"
	ReasonInvalidImageName   = "InvalidImageName"
	ReasonImageInspectError  = "ImageInspectError"
	ReasonCreateConfigError  = "CreateContainerConfigError"
	ReasonCreateError        = "CreateContainerError"
	ReasonRunError           = "RunContainerError"
	ReasonPostStartHookError = "PostStartHookError"
	ReasonCrashLoopBackOff   = "CrashLoopBackOff"
)

// ProbeKind is one of the three kinds of probe.
type ProbeKind string

const (
	Startup   ProbeKind = "Startup"
	Readiness ProbeKind = "Readiness"
	Liveness  ProbeKind = "Liveness"
)

// Probe is a probe that shall run: first at First (or now, if that is past),
// then every period of its spec.
type Probe struct {
	ID, Container string
	Kind          ProbeKind
	First         time.Time
}
