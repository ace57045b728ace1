package agent

import (
	"hash/fnv"
	"log/slog"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"unipod.dev/unipod/internal/engine"
)

// eventWriters is how many Events are written at the same time: a broadcaster writes
// one after another, falls behind when many pods start at once, and drops what
// it has no room for.
const eventWriters = 8

// recorder writes Events as kubelet does, through client-go's broadcaster: it
// aggregates what is alike and bounds how many there are of one pod. Those of
// one object are written in order.
type recorder struct {
	node         string
	log          *slog.Logger
	broadcasters [eventWriters]record.EventBroadcaster
	to           [eventWriters]record.EventRecorder
}

func newRecorder(node string, log *slog.Logger) *recorder {
	r := &recorder{node: node, log: log}
	for i := range eventWriters {
		r.broadcasters[i] = record.NewBroadcaster()
		r.to[i] = r.broadcasters[i].NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: node})
	}
	return r
}

// start makes records go to the API; those before it are dropped.
func (r *recorder) start(client kubernetes.Interface) {
	for _, b := range r.broadcasters {
		b.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	}
}

func (r *recorder) stop() {
	for _, b := range r.broadcasters {
		b.Shutdown()
	}
}

// of is who writes an object's Events, always the same.
func (r *recorder) of(uid types.UID) record.EventRecorder {
	h := fnv.New32a()
	h.Write([]byte(uid))
	return r.to[h.Sum32()%eventWriters]
}

// record writes what the engine recorded of a pod.
func (r *recorder) record(pod *v1.Pod, rec *engine.Record) {
	ref := podRef(pod)
	ref.FieldPath = rec.FieldPath
	r.of(pod.UID).AnnotatedEventf(ref, rec.Annotations, rec.Type, rec.Reason, "%s", rec.Message)
	attrs := []any{"pod", pod.Namespace + "/" + pod.Name, "uid", string(pod.UID), "reason", rec.Reason}
	if rec.Container != "" {
		attrs = append(attrs, "container", rec.Container)
	}
	r.log.Debug(rec.Message, attrs...)
}

// about writes an Event about a pod.
func (r *recorder) about(pod *v1.Pod, kind, reason, message string) {
	r.of(pod.UID).Event(podRef(pod), kind, reason, message)
}

// aboutNode writes an Event about the node.
func (r *recorder) aboutNode(kind, reason, message string) {
	ref := &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.node, UID: types.UID(r.node)}
	r.of(ref.UID).Event(ref, kind, reason, message)
}

func podRef(pod *v1.Pod) *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}
}
