// Package static keeps the pods of a directory of manifests running: what
// kubelet calls static pods. A file that appears is a pod that starts, a file
// that changes replaces it, a file that goes ends it.
//
// It owns the pods it gave to the engine, and those of an earlier life of the
// node that carry its mark and whose file is gone. It promises that a
// directory with any error in it changes nothing: what ran goes on, and the
// errors are logged.
//
// Floor: 8, beside play: another face of the engine.
package static

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
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

// Annotation marks a static pod, with the directory it comes from.
const Annotation = "unipod.dev/manifests"

// settle is how long the directory must be quiet before it is read: editors
// write a file in several steps.
const settle = 100 * time.Millisecond

// Objects are the ConfigMaps and Secrets of the directory as it is now. The
// zero value has none; it may be used concurrently.
type Objects struct {
	now atomic.Pointer[manifest.Objects]
}

// ConfigMap implements engine.Objects.
func (o *Objects) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	if all := o.now.Load(); all != nil {
		if m, ok := all.ConfigMaps[types.NamespacedName{Namespace: namespace, Name: name}]; ok {
			return m, nil
		}
	}
	return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
}

// Secret implements engine.Objects.
func (o *Objects) Secret(namespace, name string) (*v1.Secret, error) {
	if all := o.now.Load(); all != nil {
		if s, ok := all.Secrets[types.NamespacedName{Namespace: namespace, Name: name}]; ok {
			return s, nil
		}
	}
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
}

// Engine is what static pods ask of internal/engine.
type Engine interface {
	Apply(pod *v1.Pod) error
	Delete(uid types.UID, grace *time.Duration)
	Watch(ctx context.Context) <-chan engine.Event
}

// Config is one directory. All but Clock and Log are required.
type Config struct {
	Dir     string // made (0755) when missing
	Engine  Engine
	Objects *Objects // the engine's
	// Loaded, when not nil, is closed once the directory has been read and its
	// pods are with the engine.
	Loaded chan<- struct{}
	Runtime cri.Runtime
	Clock   clock.WithTicker
	Log     *slog.Logger
}

type keeper struct {
	Config
	wanted map[types.UID]*v1.Pod // by the directory
	given  map[types.UID]*v1.Pod // to the engine, until Removed
	swept  bool                  // what an earlier life left
}

// Run keeps the directory's pods running until ctx ends; they are left
// running then.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("the directory of manifests: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", cfg.Dir, err)
	}
	defer w.Close()
	if err := w.Add(cfg.Dir); err != nil {
		return fmt.Errorf("watching %s: %w", cfg.Dir, err)
	}
	k := &keeper{Config: cfg, given: map[types.UID]*v1.Pod{}}
	events := cfg.Engine.Watch(ctx)
	k.read(ctx)
	if k.Loaded != nil {
		close(k.Loaded)
	}
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watching %s: %w", cfg.Dir, err)
			}
			settled = cfg.Clock.After(settle)
		case <-w.Events:
			settled = cfg.Clock.After(settle)
		case <-settled:
			k.read(ctx)
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

// read loads the directory and brings the engine up to it.
func (k *keeper) read(ctx context.Context) {
	objects, err := k.load()
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			k.Log.Error("manifest", "error", strings.TrimSpace(line))
		}
		return
	}
	for _, w := range objects.Warnings {
		k.Log.Warn("manifest", "warning", w.String())
	}
	k.Objects.now.Store(objects)
	k.wanted = map[types.UID]*v1.Pod{}
	for _, pod := range objects.Pods {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[Annotation] = k.Dir
		asKubelet(pod, k.Clock.Now())
		k.wanted[pod.UID] = pod
	}
	k.reconcile()
	if k.swept {
		return
	}
	k.swept = true
	if err := k.removeStrangers(ctx); err != nil {
		k.Log.Warn("removing pods whose manifests are gone", "error", err)
	}
}

// asKubelet marks a pod as kubelet marks one of a file, and lets it stay
// whatever the node's taints.
func asKubelet(pod *v1.Pod, now time.Time) {
	pod.Annotations[kubetypes.ConfigSourceAnnotationKey] = kubetypes.FileSource
	pod.Annotations[kubetypes.ConfigHashAnnotationKey] = string(pod.UID)
	pod.Annotations[kubetypes.ConfigFirstSeenAnnotationKey] = now.Format(time.RFC3339Nano)
	stay := v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}
	if !slices.Contains(pod.Spec.Tolerations, stay) {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, stay)
	}
}

// load reads the directory; an empty one is no error.
func (k *keeper) load() (*manifest.Objects, error) {
	entries, err := os.ReadDir(k.Dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.ContainsFunc(entries, isManifest) {
		return &manifest.Objects{}, nil
	}
	if err != nil {
		return nil, err
	}
	return manifest.Loader{UID: manifest.StaticUID}.Load([]string{k.Dir}, nil)
}

func isManifest(e fs.DirEntry) bool {
	return slices.ContainsFunc([]string{".yaml", ".yml", ".json"}, func(ext string) bool { return strings.HasSuffix(e.Name(), ext) })
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
		if err := k.Engine.Apply(pod); err != nil {
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
	var failed error
	for _, s := range list.GetItems() {
		if s.GetAnnotations()[Annotation] != k.Dir || k.wanted[types.UID(s.GetMetadata().GetUid())] != nil {
			continue
		}
		k.Log.Info("removing a pod whose manifest is gone", "pod", s.GetMetadata().GetNamespace()+"/"+s.GetMetadata().GetName())
		_, err := k.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id})
		if err == nil {
			_, err = k.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
