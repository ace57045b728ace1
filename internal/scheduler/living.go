package scheduler

import (
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/core"
	corev1 "k8s.io/client-go/informers/core/v1"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// living are shared informers whose pods are only those that haven't ended. The
// scheduler counts every pod it sees as using the node, so upstream watches with
// a field selector; here a second copy of every pod would be the price of that.
// A pod that ends looks deleted through them, as it would with the selector.
type living struct {
	informers.SharedInformerFactory
}

func (l living) Core() core.Interface { return livingCore{l.SharedInformerFactory.Core()} }

type livingCore struct{ core.Interface }

func (c livingCore) V1() corev1.Interface { return livingV1{c.Interface.V1()} }

type livingV1 struct{ corev1.Interface }

func (v livingV1) Pods() corev1.TypedPodInformer { return livingPods{v.Interface.Pods()} }

type livingPods struct{ corev1.TypedPodInformer }

func (p livingPods) Informer() cache.SharedIndexInformer { return p.TypedInformer() }

func (p livingPods) TypedInformer() corev1.PodIndexInformer {
	return cache.NewTypedSharedIndexInformer[*v1.Pod](livingInformer{p.TypedPodInformer.Informer()})
}

func (p livingPods) Lister() listers.PodLister { return livingLister{p.TypedPodInformer.Lister()} }

func lives(obj any) bool {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	pod, ok := obj.(*v1.Pod)
	return !ok || pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed
}

// A livingInformer's handlers see living pods; its indexer has them all, which
// is why the indexes of plugins are to be read with care. (The one there is
// finds pods by ResourceClaim to wake those that wait.)
type livingInformer struct{ cache.SharedIndexInformer }

func only(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{FilterFunc: lives, Handler: h}
}

func (i livingInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(only(h))
}

func (i livingInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, every time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(only(h), every)
}

func (i livingInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithOptions(only(h), o)
}

type livingLister struct{ listers.PodLister }

func (l livingLister) List(s labels.Selector) ([]*v1.Pod, error) {
	return livingOf(l.PodLister.List(s))
}

func (l livingLister) Pods(namespace string) listers.PodNamespaceLister {
	return livingNamespace{l.PodLister.Pods(namespace)}
}

type livingNamespace struct{ listers.PodNamespaceLister }

func (l livingNamespace) List(s labels.Selector) ([]*v1.Pod, error) {
	return livingOf(l.PodNamespaceLister.List(s))
}

func (l livingNamespace) Get(name string) (*v1.Pod, error) {
	pod, err := l.PodNamespaceLister.Get(name)
	if err == nil && !lives(pod) {
		return nil, apierrors.NewNotFound(v1.Resource("pods"), name)
	}
	return pod, err
}

func livingOf(pods []*v1.Pod, err error) ([]*v1.Pod, error) {
	var alive []*v1.Pod
	for _, pod := range pods {
		if lives(pod) {
			alive = append(alive, pod)
		}
	}
	return alive, err
}
