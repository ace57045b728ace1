package objects

import (
	"context"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	secretKind    = "secret"
	configMapKind = "configmap"
)

// key names an object that pods refer to.
type key struct{ kind, namespace, name string }

// watched is an object under watch, for all pods that refer to it.
type watched struct {
	pods   int // guarded by Source.mu
	cancel context.CancelFunc

	answered chan struct{} // closed once the API has said whether it exists
	mu       sync.Mutex
	object   runtime.Object // nil: it doesn't exist
	known    bool
	settled  bool // immutable: it won't be asked for again
}

func (w *watched) now() runtime.Object {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.object
}

// acquire counts one more pod. s.mu is held.
func (s *Source) acquire(k key) {
	w := s.watched[k]
	if w == nil {
		w = &watched{answered: make(chan struct{})}
		s.watched[k] = w
		if s.running != nil {
			s.start(k, w)
		}
	}
	w.pods++
}

// release counts one pod less; with the last the watch ends. s.mu is held.
func (s *Source) release(k key) {
	w := s.watched[k]
	w.pods--
	if w.pods > 0 {
		return
	}
	delete(s.watched, k)
	if w.cancel != nil {
		w.cancel()
	}
}

// start begins to watch. s.mu is held.
func (s *Source) start(k key, w *watched) {
	ctx, cancel := context.WithCancel(s.running)
	w.cancel = cancel
	lw, example := s.listWatch(k)
	store := cache.NewUndeltaStore(func(list []any) {
		var obj runtime.Object
		for _, o := range list {
			if m, ok := o.(metav1.Object); ok && m.GetName() == k.name {
				obj, _ = o.(runtime.Object)
			}
		}
		if w.set(obj) {
			s.changed(k.namespace)
		}
		if immutable(obj) {
			w.mu.Lock()
			w.settled = true
			w.mu.Unlock()
			cancel()
		}
	}, cache.MetaNamespaceKeyFunc)
	r := cache.NewReflectorWithOptions(lw, example, store, cache.ReflectorOptions{Name: "agent/" + k.kind, Clock: s.cfg.Clock})
	s.group.Add(1)
	go func() {
		defer s.group.Done()
		defer cancel()
		r.RunWithContext(ctx)
	}()
}

// set takes the API's word and tells whether it is news for those who asked
// before. What is settled stays, though the ending watch may yet say otherwise.
func (w *watched) set(obj runtime.Object) (news bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.settled {
		return false
	}
	first := !w.known
	w.known, w.object = true, obj
	if first {
		close(w.answered)
	}
	return !first
}

func immutable(obj runtime.Object) bool {
	var flag *bool
	switch o := obj.(type) {
	case *v1.ConfigMap:
		flag = o.Immutable
	case *v1.Secret:
		flag = o.Immutable
	}
	return flag != nil && *flag
}

// listWatch asks for one object alone.
func (s *Source) listWatch(k key) (cache.ListerWatcher, runtime.Object) {
	api := s.cfg.Client.CoreV1()
	if k.kind == secretKind {
		return only(api.Secrets(k.namespace), k.name, s.cfg.Client), &v1.Secret{}
	}
	return only(api.ConfigMaps(k.namespace), k.name, s.cfg.Client), &v1.ConfigMap{}
}

// lister is what a typed client has for lists of L.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func only[L runtime.Object](api lister[L], name string, client any) cache.ListerWatcher {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return api.Watch(ctx, o)
		},
	}, client)
}
