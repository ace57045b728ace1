// Package static keeps the pods of a directory of manifests running, or of a
// URL: what kubelet calls static pods. A manifest that appears is a pod that
// starts, one that changes replaces it, one that goes ends it.
//
// It owns the pods it gave to the engine, and those of an earlier life of the
// node that carry its mark and whose manifest is gone. It promises that a
// source with any error in it changes nothing: what ran goes on, and the
// errors are logged.
//
// Floor: 9, beside play: another face of the engine.
package static

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/manifest"
)

// Objects are the ConfigMaps and Secrets of all sources as they are now. The
// zero value has none; it may be used concurrently.
type Objects struct {
	mu  sync.RWMutex
	now map[string]*manifest.Objects // by source
}

func (o *Objects) set(source string, objects *manifest.Objects) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now == nil {
		o.now = map[string]*manifest.Objects{}
	}
	o.now[source] = objects
}

// each calls f with the sources' objects, in order of their names, until it
// has found what it looks for.
func (o *Objects) each(f func(*manifest.Objects) bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, source := range slices.Sorted(maps.Keys(o.now)) {
		if f(o.now[source]) {
			return
		}
	}
}

// ConfigMap implements engine.Objects.
func (o *Objects) ConfigMap(namespace, name string) (found *v1.ConfigMap, err error) {
	o.each(func(all *manifest.Objects) bool {
		found = all.ConfigMaps[types.NamespacedName{Namespace: namespace, Name: name}]
		return found != nil
	})
	if found == nil {
		return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
	}
	return found, nil
}

// Secret implements engine.Objects.
func (o *Objects) Secret(namespace, name string) (found *v1.Secret, err error) {
	o.each(func(all *manifest.Objects) bool {
		found = all.Secrets[types.NamespacedName{Namespace: namespace, Name: name}]
		return found != nil
	})
	if found == nil {
		return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
	}
	return found, nil
}

// Engine is what static pods ask of internal/engine.
type Engine interface {
	Apply(pod *v1.Pod, from engine.Origin) error
	Delete(uid types.UID, grace *time.Duration)
	Watch(ctx context.Context) <-chan engine.Event
	CleanOrphans(ctx context.Context, keep func(types.UID) bool) error
}

// Config is one source: a directory, or a URL. Engine, Objects and Runtime are
// required.
type Config struct {
	Dir     string // made (0755) when missing
	URL     URL
	Engine  Engine
	Objects *Objects // the engine's
	// Loaded, when not nil, is closed once the source has told all it holds and
	// its pods are with the engine: only then a pod that nobody knows is nobody's.
	Loaded  chan<- struct{}
	Runtime cri.Runtime
	Clock   clock.WithTicker
	Log     *slog.Logger
}

// source is where manifests come from.
type source interface {
	// name tells the source from others, kind is kubelet's word for it.
	name() string
	kind() string
	// watch hands out what the source holds, at first and whenever it has
	// changed, until ctx ends. A reading of nothing says that there is no news.
	watch(ctx context.Context, out chan<- reading) error
}

// reading is what a source holds, or what is wrong with it. With both it is
// what could be read.
type reading struct {
	objects *manifest.Objects
	err     error
}

type keeper struct {
	Config
	source source
	origin engine.Origin
	wanted map[types.UID]*v1.Pod // by the source
	given  map[types.UID]*v1.Pod // to the engine, until Removed
	swept  bool                  // what an earlier life left
}

// Run keeps the source's pods running until ctx ends; they are left running
// then.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	var src source = &directory{path: cfg.Dir, clock: cfg.Clock, log: cfg.Log}
	if cfg.URL.Address != "" {
		r, err := newRemote(cfg.URL, cfg.Clock, cfg.Log)
		if err != nil {
			return err
		}
		src = r
	}
	return keep(ctx, cfg, src)
}

func keep(ctx context.Context, cfg Config, src source) error {
	ctx, cancel := context.WithCancel(ctx)
	k := &keeper{Config: cfg, source: src, origin: engine.FromManifests(src.name()), given: map[types.UID]*v1.Pod{}}
	events := cfg.Engine.Watch(ctx)
	readings, ended := make(chan reading), make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- src.watch(ctx, readings) })
	defer wg.Wait()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case r := <-readings:
			if k.take(ctx, r) && k.Loaded != nil {
				close(k.Loaded)
				k.Loaded = nil
			}
		case ev, ok := <-events:
			if !ok {
				return nil
			}
			if ev.Type == engine.Removed && k.given[ev.Pod.UID] != nil {
				delete(k.given, ev.Pod.UID)
				k.reconcile()
			}
		}
	}
}

// take brings the engine up to what the source holds.
// take makes what was read be, and tells whether it is all that the source
// holds. Where something is wrong, what was taken before stays in force. What
// an earlier life left is then unknown to this one: pods whose manifests are
// well start, and none is ended.
func (k *keeper) take(ctx context.Context, r reading) (whole bool) {
	if r.err != nil {
		for line := range strings.Lines(r.err.Error()) {
			k.Log.Error("manifest", "error", strings.TrimSpace(line))
		}
		if k.wanted != nil {
			return false
		}
	}
	if r.objects == nil {
		return false
	}
	for _, w := range r.objects.Warnings {
		k.Log.Warn("manifest", "warning", w.String())
	}
	k.Objects.set(k.source.name(), r.objects)
	k.wanted = map[types.UID]*v1.Pod{}
	for _, pod := range r.objects.Pods {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		asKubelet(pod, k.source.kind(), k.Clock.Now())
		k.wanted[pod.UID] = pod
	}
	k.reconcile()
	if r.err != nil {
		return false
	}
	if k.swept {
		return true
	}
	k.swept = true
	if err := k.removeStrangers(ctx); err != nil {
		k.Log.Warn("removing pods whose manifests are gone", "error", err)
	}
	return true
}

// asKubelet marks a pod as kubelet marks one of such a source, and lets it stay
// whatever the node's taints.
func asKubelet(pod *v1.Pod, kind string, now time.Time) {
	pod.Annotations[kubetypes.ConfigSourceAnnotationKey] = kind
	pod.Annotations[kubetypes.ConfigHashAnnotationKey] = string(pod.UID)
	pod.Annotations[kubetypes.ConfigFirstSeenAnnotationKey] = now.Format(time.RFC3339Nano)
	stay := v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}
	if !slices.Contains(pod.Spec.Tolerations, stay) {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, stay)
	}
}

// reconcile gives the engine what is wanted and takes back the rest. A pod
// that replaces one of the same name waits until that is gone.
func (k *keeper) reconcile() {
	names := map[string]bool{}
	for uid, pod := range k.given {
		names[pod.Namespace+"/"+pod.Name] = true
		if k.wanted[uid] == nil {
			k.Engine.Delete(uid, nil)
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(k.wanted)) {
		pod := k.wanted[uid]
		if k.given[uid] != nil || names[pod.Namespace+"/"+pod.Name] {
			continue
		}
		if err := k.Engine.Apply(pod, k.origin); err != nil {
			k.Log.Error("static pod", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			continue
		}
		k.given[uid] = pod
	}
}

// removeStrangers ends the pods of an earlier life whose manifest went while
// the node was away.
func (k *keeper) removeStrangers(ctx context.Context) error {
	list, err := k.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	strangers := map[types.UID]bool{}
	for _, s := range list.GetItems() {
		uid := types.UID(s.GetMetadata().GetUid())
		if engine.OriginOf(s) != k.origin || k.wanted[uid] != nil {
			continue
		}
		k.Log.Info("removing a pod whose manifest is gone", "pod", s.GetMetadata().GetNamespace()+"/"+s.GetMetadata().GetName())
		strangers[uid] = true
	}
	if len(strangers) == 0 {
		return nil
	}
	// With its volumes and logs, which the runtime knows nothing of.
	return k.Engine.CleanOrphans(ctx, func(uid types.UID) bool { return !strangers[uid] })
}
