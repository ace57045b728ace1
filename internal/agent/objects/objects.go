// Package objects finds for the engine what pods refer to in the Kubernetes
// API: ConfigMaps, Secrets, services, service account tokens, persistent
// volumes.
//
// It owns one watch for each ConfigMap and Secret that a registered pod
// names, and none for others: what it answers comes from memory, is at most
// one change behind, and a node never holds secrets that none of its pods
// use. An object marked immutable is watched until it is there, and not any
// longer. Nothing of it is durable, and no content of a Secret or token is
// logged or put into an error. All methods may be called concurrently.
//
// Floor: 7, beside node: over client-go; of unipod it knows nothing.
package objects

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/utils/clock"
)

// firstAnswer is how long a question waits for an object's first answer from
// the API, as kubelet's.
const firstAnswer = time.Second

// Config is what a Source asks. Client, Informers and Node are required.
type Config struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	// Node is this node's name: what local volumes must be on.
	Node  string
	Clock clock.WithTicker // default: the real one
	Log   *slog.Logger     // default: slog.Default()
}

// Source answers the engine's questions. Make one with [New].
type Source struct {
	cfg      Config
	services listers.ServiceLister
	synced   cache.DoneChecker

	mu      sync.Mutex
	watched map[key]*watched
	pods    map[types.UID]map[key]bool // what each registered pod refers to
	running context.Context            // nil before Run
	group   sync.WaitGroup
	changed func(namespace string)

	tokens tokens
}

// New makes a Source. Nothing is asked before [Source.Run].
func New(cfg Config) *Source {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	services := cfg.Informers.Core().V1().Services()
	cfg.Informers.Core().V1().PersistentVolumeClaims().Informer() // to be started with the others
	return &Source{
		cfg: cfg, services: services.Lister(), synced: services.Informer().HasSyncedChecker(),
		watched: map[key]*watched{}, pods: map[types.UID]map[key]bool{},
		tokens: tokens{cfg: cfg, cache: map[tokenKey]token{}},
	}
}

// Synced tells when the services are known.
func (s *Source) Synced() cache.DoneChecker { return s.synced }

// Run keeps the watches of registered pods going until ctx ends. changed is
// told of namespaces in which a watched object has changed or a claim was bound,
// expiring of pods one of whose tokens is to be replaced; neither may block.
func (s *Source) Run(ctx context.Context, changed func(namespace string), expiring func(types.UID)) {
	s.mu.Lock()
	s.running, s.changed = ctx, changed
	for k, w := range s.watched {
		s.start(k, w)
	}
	s.mu.Unlock()
	defer s.group.Wait()
	claims := s.cfg.Informers.Core().V1().PersistentVolumeClaims().Informer()
	handle, err := claims.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(before, now any) {
		old, ok1 := before.(*v1.PersistentVolumeClaim)
		claim, ok2 := now.(*v1.PersistentVolumeClaim)
		if ok1 && ok2 && old.Status.Phase != claim.Status.Phase && claim.Status.Phase == v1.ClaimBound {
			changed(claim.Namespace)
		}
	}})
	if err != nil {
		s.cfg.Log.Error("watching persistent volume claims: pods that wait for one look now and then", "err", err)
	} else {
		defer func() { _ = claims.RemoveEventHandler(handle) }() // it was just added
	}
	s.tokens.watch(ctx, expiring)
}

// Register takes note of what a pod refers to, instead of what it referred to
// before.
func (s *Source) Register(pod *v1.Pod) {
	refs := map[key]bool{}
	podutil.VisitPodSecretNames(pod, func(name string) bool {
		refs[key{secretKind, pod.Namespace, name}] = true
		return true
	})
	podutil.VisitPodConfigmapNames(pod, func(name string) bool {
		refs[key{configMapKind, pod.Namespace, name}] = true
		return true
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.pods[pod.UID]
	s.pods[pod.UID] = refs
	for k := range refs {
		if !old[k] {
			s.acquire(k)
		}
	}
	for k := range old {
		if !refs[k] {
			s.release(k)
		}
	}
}

// Forget drops a pod that is gone, with its tokens.
func (s *Source) Forget(uid types.UID) {
	s.mu.Lock()
	for k := range s.pods[uid] {
		s.release(k)
	}
	delete(s.pods, uid)
	s.mu.Unlock()
	s.tokens.forget(uid)
}

// ConfigMap implements engine.Objects for objects of registered pods.
func (s *Source) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	obj, err := s.get(key{configMapKind, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*v1.ConfigMap), nil
}

// Secret implements engine.Objects for objects of registered pods.
func (s *Source) Secret(namespace, name string) (*v1.Secret, error) {
	obj, err := s.get(key{secretKind, namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*v1.Secret), nil
}

func (s *Source) get(k key) (runtime.Object, error) {
	s.mu.Lock()
	w := s.watched[k]
	s.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("%s %s/%s is not registered: no pod of this node refers to it", k.kind, k.namespace, k.name)
	}
	select {
	case <-w.answered:
	default:
		timer := s.cfg.Clock.NewTimer(firstAnswer)
		defer timer.Stop()
		select {
		case <-w.answered:
		case <-timer.C():
			return nil, fmt.Errorf("failed to sync %s cache: timed out waiting for %s/%s", k.kind, k.namespace, k.name)
		}
	}
	if obj := w.now(); obj != nil {
		return obj, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource(k.kind), k.name)
}

// Services are those a pod of the namespace may see in its environment: its
// namespace's, and the API server's.
func (s *Source) Services(namespace string) []*v1.Service {
	list, err := s.services.Services(namespace).List(labels.Everything())
	if err != nil {
		s.cfg.Log.Error("listing services", "namespace", namespace, "err", err) // a cache never fails
	}
	if namespace != metav1.NamespaceDefault {
		if api, err := s.services.Services(metav1.NamespaceDefault).Get("kubernetes"); err == nil {
			list = append(list, api)
		}
	}
	return list
}
