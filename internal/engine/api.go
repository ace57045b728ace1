package engine

import (
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/podspec"
	"unipod.dev/unipod/internal/volume"
)

// Config is what an engine stands on. CRI, Dir and LogDir are required.
type Config struct {
	// CRI is the runtime, in-process or over a socket. The engine uses
	// nothing else of it.
	CRI cri.Service
	// Dir holds one directory per pod, named by its UID: volumes, the hosts
	// file, termination logs. It survives reboots and is made 0700.
	Dir string
	// LogDir holds the containers' logs in kubelet's layout:
	// <namespace>_<name>_<uid>/<container>/<restart>.log.
	LogDir string
	// KeepLogs leaves a pod's log directory in place when the pod is removed.
	KeepLogs bool

	// Objects finds the ConfigMaps and Secrets pods refer to. Nil means there
	// are none.
	Objects Objects
	// ObjectsOf, when set, chooses by a pod's origin where its ConfigMaps and
	// Secrets are looked for, instead of Objects.
	ObjectsOf func(Origin) Objects
	// Services are those a pod of the namespace may see in its environment;
	// nil means there are none.
	Services func(namespace string) []*v1.Service

	// Node is what pods take from their node; HostIPs goes into every status.
	// Its LogDir is set from LogDir above.
	Node podspec.Node
	// NodeName is spec.nodeName of every pod.
	NodeName string
	// Volumes is passed on to package volume; its Dir and Source are set from
	// Dir and Objects above.
	Volumes volume.Config
	// CgroupRoot is the parent of the QoS cgroups; default "/unipod". A pod's
	// cgroup parent is <root>/pod<uid> (Guaranteed), <root>/burstable/pod<uid>
	// or <root>/besteffort/pod<uid>; with a runtime that uses the systemd
	// driver, the slice of that path. Other runtimes than unipod's choose for
	// themselves: they would not remove it.
	CgroupRoot string
	// UserNamespace chooses the ID mapping of a pod with hostUsers: false; nil
	// means 65536 IDs per pod, kept in the pod's directory.
	UserNamespace func(*v1.Pod) (*runtimeapi.UserNamespace, error)

	// RuntimeHandler finds the handler of a RuntimeClass; a class that doesn't
	// exist is an error for which apierrors.IsNotFound is true. nil knows none.
	RuntimeHandler func(class string) (string, error)
	// Admit is asked once about a pod that is new to the node; a reason rejects
	// it, with a message. nil takes in all.
	Admit func(*v1.Pod) (reason, message string)

	// MaxParallelPulls bounds concurrent image pulls; default 3.
	MaxParallelPulls int
	// Relist is the period of the safety net that looks at the runtime
	// although no event asked for it; default 60 s.
	Relist time.Duration

	// Clock defaults to the real one, Logger to slog.Default().
	Clock  clock.WithTicker
	Logger *slog.Logger
}

// Objects finds ConfigMaps and Secrets. A missing object is an error for which
// k8s.io/apimachinery/pkg/api/errors.IsNotFound is true. It is called from many
// goroutines and must answer fast, from memory. What it returns is not
// modified.
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
}

// noObjects is an Objects without any.
type noObjects struct{}

func (noObjects) ConfigMap(_, name string) (*v1.ConfigMap, error) {
	return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
}

func (noObjects) Secret(_, name string) (*v1.Secret, error) {
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
}

// EventType says what an [Event] tells.
type EventType string

const (
	// StatusChanged: Pod carries the new status. Intermediate states may be
	// skipped for a slow reader, never the latest.
	StatusChanged EventType = "Status"
	// Recorded: Record is a v1.Event-like sentence about Pod.
	Recorded EventType = "Record"
	// Removed: the pod is gone, nothing of it is left in the runtime.
	Removed EventType = "Removed"
)

// Event is one change of a pod, as [Engine.Watch] delivers it. Pod must not be
// modified.
type Event struct {
	Type   EventType
	Pod    *v1.Pod
	Record *Record
}

// Record is what kubelet would write as a v1.Event.
type Record struct {
	Time time.Time
	// Type is v1.EventTypeNormal or v1.EventTypeWarning.
	Type string
	// Reason and Message are kubelet's own words.
	Reason, Message string
	// FieldPath is "spec.containers{name}", "spec.initContainers{name}" or
	// "spec.ephemeralContainers{name}"; empty for the pod itself.
	FieldPath string
	// Container is the name within FieldPath.
	Container string
	// Annotations are the event's, if any.
	Annotations map[string]string
}

// PodUID names a pod.
type PodUID = types.UID
