// Package agent is the kubelet's part of the node: between the Kubernetes API
// and the engine.
//
// Pods bound to this node are given to the engine, those that don't fit are
// failed with kubelet's words; what the engine reports becomes status patches
// and Events; pods of the manifest directory are shown in the API as mirror
// pods; and a deleted pod is let go of in the API once nothing of it is left
// on the machine. The node's own object is package agent/register's, what pods
// refer to in the API package agent/objects'.
//
// It keeps nothing on disk. After a restart the API says which pods there are
// and what was last reported of them, the runtime what became of them. A
// status that couldn't be written is tried again until it can or its pod is
// gone; of several only the latest is written.
//
// Floor: 8, over engine and objects; package cluster puts it together.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/agent/objects"
	"unipod.dev/unipod/internal/engine"
)

// Engine is what the agent asks of internal/engine.
type Engine interface {
	Apply(pod *v1.Pod, from engine.Origin) error
	Delete(uid types.UID, grace *time.Duration)
	Pods() []*v1.Pod
	Watch(ctx context.Context) <-chan engine.Event
	CleanOrphans(ctx context.Context, keep func(types.UID) bool) error
	ObjectsChanged(namespace string)
	RefreshVolumes(uid types.UID)
}

// NodeObject is what the agent asks of package register.
type NodeObject interface {
	// Registered is closed once the API has the node.
	Registered() <-chan struct{}
	// Node is the node as last written or seen; it must not be modified.
	Node() *v1.Node
	// Fresh asks the API for it.
	Fresh(ctx context.Context) (*v1.Node, error)
}

// Config is what an agent stands on. Client, Informers, NodeName, Engine,
// Objects and Node are required.
type Config struct {
	Client kubernetes.Interface
	// Informers may be shared with controllers. The agent starts those it asks
	// for; its pods are the ones of this node.
	Informers informers.SharedInformerFactory
	NodeName  string
	Engine    Engine
	Objects   *objects.Source

	// Node is this node's object. No pod of the API starts before it is
	// registered.
	Node NodeObject
	// StaticLoaded is closed when the manifest directory has been read: until
	// then its pods can't be told from orphans. Nil: there is no directory.
	StaticLoaded <-chan struct{}
	// Keep tells of pods in the runtime that belong to somebody else.
	Keep func(types.UID) bool

	Clock clock.WithTicker // default: the real one
	Log   *slog.Logger     // default: slog.Default()
}

// Agent is the kubelet's part. Make one with [New], and [Agent.Run] it once.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	pods    cache.SharedIndexInformer
	writer  *writer
	mirrors *mirrors
	events  *recorder
	admit   *admission
	ready   chan struct{}

	mu    sync.Mutex
	known map[types.UID]*entry // pods of the API on this node
}

// New makes an agent. Nothing happens before Run.
func New(cfg Config) (*Agent, error) {
	if cfg.Client == nil || cfg.Informers == nil || cfg.NodeName == "" || cfg.Engine == nil || cfg.Objects == nil || cfg.Node == nil {
		return nil, fmt.Errorf("agent: Client, Informers, NodeName, Engine, Objects and Node are required: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	a := &Agent{cfg: cfg, log: cfg.Log, ready: make(chan struct{}), known: map[types.UID]*entry{}}
	a.pods = cfg.Informers.Core().V1().Pods().Informer()
	a.events = newRecorder(cfg.NodeName, cfg.Log)
	a.mirrors = newMirrors(a)
	a.writer = newWriter(a)
	a.admit = newAdmission(a)
	return a, nil
}

// Ready is closed when the pods the API had at the start are with the engine.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// RecordNode writes an Event about the node, as kubelet does. It may be called
// at any time; before Run it does nothing.
func (a *Agent) RecordNode(kind, reason, message string) { a.events.aboutNode(kind, reason, message) }

// Run does the agent's work until ctx ends. Pods keep running.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	a.events.start(a.cfg.Client)
	defer a.events.stop()
	group.Go(func() error {
		a.cfg.Objects.Run(ctx, a.cfg.Engine.ObjectsChanged, a.cfg.Engine.RefreshVolumes)
		return nil
	})
	group.Go(func() error { return a.follow(ctx) })
	group.Go(func() error { a.writer.run(ctx); return nil })
	group.Go(func() error { a.mirrors.run(ctx); return nil })
	a.cfg.Informers.StartWithContext(ctx)
	group.Go(func() error { return a.feed(ctx) })
	return group.Wait()
}

// feed gives the engine the pods of the API.
func (a *Agent) feed(ctx context.Context) error {
	// A pod's environment shows services, and its admission needs the node.
	if !cache.WaitFor(ctx, "", a.cfg.Objects.Synced()) {
		return nil // ctx has ended
	}
	select {
	case <-ctx.Done():
		return nil
	case <-a.cfg.Node.Registered():
	}
	handle, err := a.pods.AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			pod, ok := podOf(obj)
			return ok && pod.Spec.NodeName == a.cfg.NodeName
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { a.seen(obj) },
			UpdateFunc: func(_, obj any) { a.seen(obj) },
			DeleteFunc: func(obj any) { a.gone(obj) },
		},
	})
	if err != nil {
		return fmt.Errorf("agent: watching pods: %w", err)
	}
	defer func() {
		if err := a.pods.RemoveEventHandler(handle); err != nil {
			a.log.Warn("leaving the pods' watch", "err", err)
		}
	}()
	if !cache.WaitFor(ctx, "", handle.HasSyncedChecker()) {
		return nil
	}
	close(a.ready)
	if a.cfg.StaticLoaded != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-a.cfg.StaticLoaded:
		}
	}
	a.mirrors.loaded()
	if err := a.cfg.Engine.CleanOrphans(ctx, a.cfg.Keep); err != nil && ctx.Err() == nil {
		a.log.Warn("ending pods that nobody knows", "err", err)
	}
	<-ctx.Done()
	return nil
}

// follow passes on what the engine reports until ctx ends.
func (a *Agent) follow(ctx context.Context) error {
	for ev := range a.cfg.Engine.Watch(ctx) {
		switch ev.Type {
		case engine.StatusChanged:
			a.mirrors.want(ev.Pod)
			a.writer.set(ev.Pod)
		case engine.Recorded:
			a.events.record(ev.Pod, ev.Record)
		case engine.Removed:
			a.mirrors.unwant(ev.Pod)
			a.writer.finish(ev.Pod.UID)
			a.cfg.Objects.Forget(ev.Pod.UID)
		}
	}
	return nil
}

func podOf(obj any) (*v1.Pod, bool) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	pod, ok := obj.(*v1.Pod)
	return pod, ok
}
