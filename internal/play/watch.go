package play

import (
	"context"
	"strings"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"unipod.dev/unipod/internal/timeline"
)

// Watch implements World. All pods, events and Jobs of the node are seen; told
// are those of the play.
func (a *API) Watch(ctx context.Context) <-chan Event {
	out := make(chan Event)
	w := &watch{a, ctx, out}
	var running sync.WaitGroup
	for _, each := range []struct {
		client   rest.Interface
		resource string
		example  runtime.Object
		handler  cache.ResourceEventHandlerFuncs
	}{
		{a.client.CoreV1().RESTClient(), "pods", &v1.Pod{}, cache.ResourceEventHandlerFuncs{AddFunc: w.pod, UpdateFunc: newer(w.pod), DeleteFunc: w.podGone}},
		{a.client.CoreV1().RESTClient(), "events", &v1.Event{}, cache.ResourceEventHandlerFuncs{AddFunc: w.event, UpdateFunc: newer(w.event)}},
		{a.client.BatchV1().RESTClient(), "jobs", &batchv1.Job{}, cache.ResourceEventHandlerFuncs{AddFunc: w.job, UpdateFunc: newer(w.job)}},
	} {
		lw := cache.NewListWatchFromClient(each.client, each.resource, metav1.NamespaceAll, fields.Everything())
		_, controller := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lw, ObjectType: each.example, Handler: each.handler})
		running.Go(func() { controller.RunWithContext(ctx) })
	}
	go func() {
		running.Wait()
		close(out)
	}()
	return out
}

func newer(f func(any)) func(_, n any) { return func(_, n any) { f(n) } }

type watch struct {
	*API
	ctx context.Context
	out chan<- Event
}

func (w *watch) tell(ev Event) {
	select {
	case w.out <- ev:
	case <-w.ctx.Done():
	}
}

func (w *watch) pod(obj any) {
	pod, ok := obj.(*v1.Pod)
	if !ok {
		return
	}
	of := w.rootOf(w.ctx, "Pod", pod)
	if of == "" {
		return
	}
	w.mu.Lock()
	w.pods[pod.UID] = pod
	w.mu.Unlock()
	w.tell(Event{Type: PodChanged, Of: of, Pod: pod})
}

func (w *watch) podGone(obj any) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	pod, ok := obj.(*v1.Pod)
	if !ok {
		return
	}
	w.mu.Lock()
	_, ours := w.pods[pod.UID]
	w.mu.Unlock()
	if !ours {
		return
	}
	w.tell(Event{Type: PodRemoved, Of: w.rootOf(w.ctx, "Pod", pod), Pod: pod})
	w.mu.Lock()
	delete(w.pods, pod.UID)
	close(w.fewer)
	w.fewer = make(chan struct{})
	w.mu.Unlock()
}

func (w *watch) job(obj any) {
	job, ok := obj.(*batchv1.Job)
	if !ok || job.Annotations[Annotation] != w.name {
		return
	}
	for _, c := range job.Status.Conditions {
		if c.Status == v1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
			w.tell(Event{Type: JobEnded, Of: key("Job", job), Failed: c.Type == batchv1.JobFailed})
		}
	}
}

func (w *watch) event(obj any) {
	ev, ok := obj.(*v1.Event)
	if !ok {
		return
	}
	about := ev.InvolvedObject
	record := &timeline.Record{Type: ev.Type, Reason: ev.Reason, Message: ev.Message, Container: containerOf(about.FieldPath)}
	w.mu.Lock()
	pod := w.pods[about.UID]
	w.mu.Unlock()
	if pod == nil && about.Kind == "Pod" && about.UID != "" && w.rootOfRef(w.ctx, about) != "" {
		// Seen before its pod.
		pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: about.Namespace, Name: about.Name, UID: about.UID}}
	}
	switch {
	case pod != nil:
		w.tell(Event{Type: PodRecorded, Pod: pod, Record: record})
	case about.Kind != "Pod" && ev.Type == v1.EventTypeWarning && w.rootOfRef(w.ctx, about) != "":
		w.tell(Event{Type: Recorded, Of: key(about.Kind, &metav1.ObjectMeta{Namespace: about.Namespace, Name: about.Name}), Record: record})
	}
}

// containerOf is the container's name in spec.containers{name}.
func containerOf(fieldPath string) string {
	_, name, ok := strings.Cut(fieldPath, "{")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(name, "}")
}

// rootOf is the key of the object of the play that an object is or came of;
// "" when it is nobody of ours.
func (a *API) rootOf(ctx context.Context, kind string, m metav1.Object) string {
	// Owners first: a Deployment's annotations are copied to its ReplicaSets.
	for _, o := range m.GetOwnerReferences() {
		gv, err := schema.ParseGroupVersion(o.APIVersion)
		if err != nil {
			continue
		}
		if of := a.rootOfUID(ctx, gv.WithKind(o.Kind), m.GetNamespace(), o.Name, o.UID); of != "" {
			return of
		}
	}
	if m.GetAnnotations()[Annotation] == a.name {
		return key(kind, m)
	}
	return ""
}

func (a *API) rootOfRef(ctx context.Context, ref v1.ObjectReference) string {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return ""
	}
	return a.rootOfUID(ctx, gv.WithKind(ref.Kind), ref.Namespace, ref.Name, ref.UID)
}

// rootOfUID looks an object up, once.
func (a *API) rootOfUID(ctx context.Context, gvk schema.GroupVersionKind, namespace, name string, uid types.UID) string {
	a.mu.Lock()
	r, known := a.roots[uid]
	a.mu.Unlock()
	if known {
		return r.of
	}
	mapping, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return ""
	}
	if mapping.Scope.Name() != "namespace" {
		namespace = ""
	}
	m, err := a.metas.Resource(mapping.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "" // asked again with the next change
	}
	if err == nil && m.GetUID() == uid {
		r.of = a.rootOf(ctx, gvk.Kind, m)
	}
	a.mu.Lock()
	a.roots[uid] = r
	a.mu.Unlock()
	return r.of
}
