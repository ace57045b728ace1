package agent

import (
	"log/slog"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"unipod.dev/unipod/internal/engine"
)

// recorder writes Events as kubelet does, through client-go's broadcaster: it
// aggregates what is alike and bounds how many there are of one pod.
type recorder struct {
	node        string
	log         *slog.Logger
	broadcaster record.EventBroadcaster
	to          record.EventRecorder
}

func newRecorder(node string, log *slog.Logger) *recorder {
	b := record.NewBroadcaster()
	return &recorder{
		node: node, log: log, broadcaster: b,
		to: b.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: node}),
	}
}

// start makes records go to the API; those before it are dropped.
func (r *recorder) start(client kubernetes.Interface) {
	r.broadcaster.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: client.CoreV1().Events("")})
}

func (r *recorder) stop() { r.broadcaster.Shutdown() }

// record writes what the engine recorded of a pod.
func (r *recorder) record(pod *v1.Pod, rec *engine.Record) {
	ref := podRef(pod)
	ref.FieldPath = rec.FieldPath
	r.to.AnnotatedEventf(ref, rec.Annotations, rec.Type, rec.Reason, "%s", rec.Message)
	attrs := []any{"pod", pod.Namespace + "/" + pod.Name, "uid", string(pod.UID), "reason", rec.Reason}
	if rec.Container != "" {
		attrs = append(attrs, "container", rec.Container)
	}
	r.log.Debug(rec.Message, attrs...)
}

// about writes an Event about a pod.
func (r *recorder) about(pod *v1.Pod, kind, reason, message string) {
	r.to.Event(podRef(pod), kind, reason, message)
}

// aboutNode writes an Event about the node.
func (r *recorder) aboutNode(kind, reason, message string) {
	r.to.Event(&v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.node, UID: types.UID(r.node)}, kind, reason, message)
}

func podRef(pod *v1.Pod) *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}
}
