// Package engine makes pods live: it carries out what lifecycle decides.
//
// It owns the pods it was given by [Engine.Apply], their directories and log
// files, and every sandbox of the runtime that carries one of their UIDs. Each
// active pod has one worker, so a pod's decisions are taken one after the
// other while pods never wait for each other; the slow things (pulls, starts,
// stops, hooks, probes) run beside the worker and report back to it. Workers
// wake on the runtime's events, on timers that lifecycle asks for and on
// changes of the pod; a relist every minute is only a safety net.
//
// Nothing but the runtime and the pod directories is durable: a new engine
// that is given the same pods finds their sandboxes and containers by label
// and carries on, restart counts included.
//
// Floor 6: over lifecycle, volume, podspec, probe and the CRI line; it never sees the
// runtime beneath.
package engine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/probe"
	"unipod.dev/unipod/internal/volume"
)

// Engine runs pods. Make one with [New]; all methods are safe for concurrent
// use.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	clock   clock.WithTicker
	hub     hub
	volumes *volume.Manager
	prober  *probe.Prober
	images  *images
	users   *userNamespaces
	making  chan struct{} // a place for each that the runtime makes at the time

	mu      sync.Mutex
	pods    map[PodUID]*worker
	running context.Context // nil unless Run is under way
	ready   bool            // workers may start
	runtime runtimeInfo     // set before ready
	workers sync.WaitGroup
}

// New makes an engine, and its directories if they are missing. Nothing runs
// before Run.
func New(cfg Config) (*Engine, error) {
	if cfg.CRI == nil || cfg.Dir == "" || cfg.LogDir == "" {
		return nil, fmt.Errorf("engine: CRI, Dir and LogDir are required: %w", errdefs.ErrInvalidArgument)
	}
	cfg.setDefaults()
	// What containers say is for root only, whatever the modes below.
	if err := os.MkdirAll(cfg.LogDir, 0o700); err != nil {
		return nil, fmt.Errorf("engine: making the directory of logs: %w", err)
	}
	e := &Engine{
		cfg:    cfg,
		log:    cfg.Logger,
		clock:  cfg.Clock,
		prober: probe.New(cfg.CRI),
		users:  &userNamespaces{dir: cfg.Dir},
		making: make(chan struct{}, max(16, 4*runtime.GOMAXPROCS(0))),
		pods:   map[PodUID]*worker{},
	}
	cfg.Volumes.Source = func(pod *v1.Pod) volume.Source { return e.objectsOf(pod) }
	var err error
	if e.volumes, err = volume.New(cfg.Volumes); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	e.images = newImages(e)
	return e, nil
}

func (c *Config) setDefaults() {
	if c.Objects == nil {
		c.Objects = noObjects{}
	}
	if c.ObjectsOf == nil {
		all := c.Objects
		c.ObjectsOf = func(Origin) Objects { return all }
	}
	c.Volumes.Dir = c.Dir
	c.Node.LogDir = c.LogDir
	c.CgroupRoot = cmp.Or(c.CgroupRoot, "/unipod")
	c.MaxParallelPulls = cmp.Or(c.MaxParallelPulls, 3)
	c.Relist = cmp.Or(c.Relist, time.Minute)
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

// Run starts the workers of the pods applied so far and of those to come. It
// returns when ctx has ended and every goroutine it started is gone; the pods
// keep running.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.running != nil {
		e.mu.Unlock()
		return fmt.Errorf("engine: already running: %w", errdefs.ErrFailedPrecondition)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	e.running = ctx
	e.mu.Unlock()
	err := e.serve(ctx)
	e.workers.Wait()
	e.mu.Lock()
	e.running, e.ready = nil, false
	e.mu.Unlock()
	return err
}

// serve prepares what workers need, starts those that wait, and keeps the
// runtime's events coming until ctx ends.
func (e *Engine) serve(ctx context.Context) error {
	if err := e.meet(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	e.ready = true
	for _, w := range e.pods {
		e.start(w)
	}
	e.mu.Unlock()
	e.listen(ctx)
	return nil
}

// Apply adds a pod or updates it, by UID. The pod's status, when set, is what
// an earlier engine reported; the engine takes over from there. Spec and
// metadata are copied; of a pod that is ending, only a deletion with a shorter
// grace still has an effect. It fails when the pod has no UID, name or
// namespace, and when the pod is there from another origin.
func (e *Engine) Apply(pod *v1.Pod, from Origin) error {
	if !from.known {
		return fmt.Errorf("pod %s/%s: it comes from nowhere: %w", pod.Namespace, pod.Name, errdefs.ErrInvalidArgument)
	}
	for field, value := range map[string]string{"uid": string(pod.UID), "name": pod.Name, "namespace": pod.Namespace} {
		// They become names of directories.
		if value == "" || value == "." || value == ".." || strings.ContainsAny(value, "/_\x00") {
			return fmt.Errorf("pod %s/%s: metadata.%s %q is missing or unusable: %w", pod.Namespace, pod.Name, field, value, errdefs.ErrInvalidArgument)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if w, ok := e.pods[pod.UID]; ok {
		if w.origin != from {
			return fmt.Errorf("pod %s/%s: there is a pod with UID %s from another source: %w", pod.Namespace, pod.Name, pod.UID, errdefs.ErrAlreadyExists)
		}
		w.update(pod)
		return nil
	}
	w := newWorker(e, pod, from)
	e.pods[pod.UID] = w
	e.hub.publish(Event{Type: StatusChanged, Pod: w.snapshot()})
	if e.ready {
		e.start(w)
	}
	return nil
}

// Delete ends a pod gracefully: nil means the pod's own
// terminationGracePeriodSeconds, zero kills at once. A second call may only
// shorten the grace. When the pod has ended and is cleaned up, watchers see
// Removed. Deleting an unknown pod does nothing.
func (e *Engine) Delete(uid PodUID, grace *time.Duration) {
	e.mu.Lock()
	w, ok := e.pods[uid]
	e.mu.Unlock()
	if ok {
		w.delete(grace)
	}
}

// Get returns the pod with its present status. The result is the caller's.
func (e *Engine) Get(uid PodUID) (*v1.Pod, bool) {
	e.mu.Lock()
	w, ok := e.pods[uid]
	e.mu.Unlock()
	if !ok {
		return nil, false
	}
	return w.snapshot().DeepCopy(), true
}

// List returns all pods with their present status, in order of namespace and
// name. The result is the caller's.
func (e *Engine) List() []*v1.Pod {
	e.mu.Lock()
	pods := make([]*v1.Pod, 0, len(e.pods))
	for _, w := range e.pods {
		pods = append(pods, w.snapshot().DeepCopy())
	}
	e.mu.Unlock()
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return pods
}

// Watch delivers the present status of every pod, then every change, until
// ctx ends; then the channel is closed. A slow reader never blocks a pod.
func (e *Engine) Watch(ctx context.Context) <-chan Event {
	watcher := e.hub.register()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.pods {
		w.introduce(watcher)
	}
	return e.hub.deliver(ctx, watcher)
}

// forget drops a pod that has ended and is cleaned up.
func (e *Engine) forget(w *worker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pods, w.uid)
	e.hub.publish(Event{Type: Removed, Pod: w.snapshot()})
}

func (e *Engine) start(w *worker) {
	ctx := e.running
	e.workers.Add(1)
	go func() {
		defer e.workers.Done()
		w.run(ctx)
	}()
}
