package engine

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/lifecycle"
	"unipod.dev/unipod/internal/podspec"
	"unipod.dev/unipod/internal/volume"
)

// worker owns one pod. Its goroutine alone steps the state machine and starts
// what the machine asks for; each of those things runs in its own goroutine
// and posts its result here.
type worker struct {
	e      *Engine
	uid    PodUID
	origin Origin
	log    *slog.Logger

	mu     sync.Mutex
	pod    *v1.Pod // wanted; replaced, never modified
	shown  *v1.Pod // with the status last published; replaced, never modified
	events []lifecycle.Event
	wake   chan struct{}
	// picture and logs are what other goroutines need of the last look:
	// sandboxes by ID, and the logs of running containers.
	picture map[string]sandboxView
	logs    []runningLog
	stale   bool // volumes may show old content
	evicted bool
	dropped bool              // nobody wants to know how the pod ends
	counts  map[counted]int64 // of probes
	// limits are what sandboxes were last given, by ID.
	limits map[string]*runtimeapi.LinuxContainerResources

	// disk guards the pod's volumes: package volume allows one call per pod.
	disk    sync.Mutex
	mounted map[string]volume.Mounted

	// What follows belongs to the worker's goroutine.
	state   lifecycle.State
	seen    sight
	probers map[probeKey]context.CancelFunc
	starts  map[string]context.CancelFunc // by container name
	stops   map[string]context.CancelFunc // by container ID
	ops     sync.WaitGroup
	timer   clock.Timer
	// admitted: the node has been asked whether it takes the pod in.
	admitted bool
}

func newWorker(e *Engine, pod *v1.Pod, from Origin) *worker {
	pod = pod.DeepCopy()
	if pod.Spec.NodeName == "" {
		pod.Spec.NodeName = e.cfg.NodeName
	}
	return &worker{
		e: e, uid: pod.UID, origin: from, pod: pod, shown: pod,
		log:     e.log.With("pod", pod.Namespace+"/"+pod.Name, "uid", string(pod.UID)),
		wake:    make(chan struct{}, 1),
		seen:    newSight(),
		probers: map[probeKey]context.CancelFunc{},
		starts:  map[string]context.CancelFunc{},
		stops:   map[string]context.CancelFunc{},
	}
}

// snapshot is the pod as watchers see it. It must not be modified.
func (w *worker) snapshot() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shown
}

func (w *worker) desired() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// poke makes the worker look at its pod again.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// post hands the machine an event.
func (w *worker) post(ev lifecycle.Event) {
	w.mu.Lock()
	w.events = append(w.events, ev)
	w.mu.Unlock()
	w.poke()
}

// update takes a new version of the pod. An end once asked for stays asked for.
func (w *worker) update(pod *v1.Pod) {
	pod = pod.DeepCopy()
	w.mu.Lock()
	if pod.Spec.NodeName == "" {
		pod.Spec.NodeName = w.pod.Spec.NodeName
	}
	if w.pod.DeletionTimestamp != nil {
		g := pod.DeletionGracePeriodSeconds
		if pod.DeletionTimestamp == nil || g == nil || *g > *w.pod.DeletionGracePeriodSeconds {
			pod.DeletionTimestamp = w.pod.DeletionTimestamp
			pod.DeletionGracePeriodSeconds = w.pod.DeletionGracePeriodSeconds
		}
	} else if pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds == nil {
		pod.DeletionGracePeriodSeconds = graceSeconds(pod, nil)
	}
	w.pod = pod
	w.stale = true
	w.reveal(w.shown.Status)
	w.mu.Unlock()
	w.poke()
}

// askRefresh has the volumes brought up to date.
func (w *worker) askRefresh() {
	w.mu.Lock()
	w.stale = true
	w.mu.Unlock()
	w.poke()
}

// delete asks for the pod's end within grace, or sooner if that was asked
// before. An API has the pod no more.
func (w *worker) delete(grace *time.Duration) {
	w.mu.Lock()
	w.dropped = true
	seconds := graceSeconds(w.pod, grace)
	if old := w.pod.DeletionGracePeriodSeconds; w.pod.DeletionTimestamp == nil || old == nil || *seconds < *old {
		pod := w.pod.DeepCopy()
		at := metav1.NewTime(w.e.clock.Now().Add(time.Duration(*seconds) * time.Second))
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, seconds
		w.pod = pod
		w.reveal(w.shown.Status)
	}
	w.mu.Unlock()
	w.poke()
}

// graceSeconds is the grace of a deletion, whole seconds, rounded up.
func graceSeconds(pod *v1.Pod, grace *time.Duration) *int64 {
	s := int64(v1.DefaultTerminationGracePeriodSeconds)
	switch {
	case grace != nil:
		s = int64((max(*grace, 0) + time.Second - 1) / time.Second)
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		s = *pod.Spec.TerminationGracePeriodSeconds
	}
	return &s
}

// reveal publishes the pod with a status. w.mu is held, so that the order of
// publications is that of changes.
func (w *worker) reveal(status v1.PodStatus) {
	shown := *w.pod
	shown.Status = status
	w.shown = &shown
	w.e.hub.publish(Event{Type: StatusChanged, Pod: &shown})
}

// introduce shows the pod to a new watcher, in sequence with what is published
// of it.
func (w *worker) introduce(to *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to.add(Event{Type: StatusChanged, Pod: w.shown})
}

// run lives the pod's life. It returns when the pod is removed or ctx ends;
// everything it started is over then.
func (w *worker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.ops.Wait()
	defer cancel()
	for {
		next, removed := w.step(ctx)
		if removed {
			w.log.Info("pod removed")
			w.e.forget(w)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-w.alarm(next):
		}
	}
}

// alarm sets the worker's only timer; none runs for a pod that waits for
// nothing.
func (w *worker) alarm(at time.Time) <-chan time.Time {
	if at.IsZero() {
		if w.timer != nil {
			w.timer.Stop()
			w.timer = nil
		}
		return nil
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = w.e.clock.NewTimer(max(at.Sub(w.e.clock.Now()), 0))
	return w.timer.C()
}

// step looks at the runtime, decides, publishes and sets things going.
func (w *worker) step(ctx context.Context) (next time.Time, removed bool) {
	w.mu.Lock()
	pod, events := w.pod, w.events
	w.events = nil
	// A pod of an API whose status is final there has been told of in whole: the
	// phase isn't, before everything has ended.
	untold := w.origin == FromAPI() && !w.dropped && pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed
	stale := w.stale
	w.stale = false
	w.mu.Unlock()
	if stale {
		w.begin(func() { w.refreshVolumes(ctx) })
	}

	view, err := w.look(ctx, pod)
	if err != nil {
		w.mu.Lock()
		w.events = append(events, w.events...)
		w.mu.Unlock()
		if ctx.Err() == nil {
			w.log.Error("looking at the pod in the runtime failed", "err", err)
		}
		return w.e.clock.Now().Add(time.Second), false
	}
	if no, rejected := w.admit(pod, view); rejected {
		events = append(events, no)
	}
	state, out := lifecycle.Step(w.state, lifecycle.Input{
		Now: w.e.clock.Now(), Pod: pod, Untold: untold, View: view, Events: events, HostIPs: w.e.cfg.Node.HostIPs,
	})
	w.state = state
	w.remember(view)
	// What happened comes before what is done about it.
	w.publish(&out.Status)
	for _, r := range out.Records {
		w.record(r.Type, r.Reason, r.Container, r.Message)
	}
	if out.Removed {
		w.rest(pod)
		return time.Time{}, true
	}
	for _, a := range out.Actions {
		w.perform(ctx, pod, a)
	}
	w.probe(ctx, pod, out.Probes)
	return out.WakeAt, false
}

// publish shows a status if it is news.
func (w *worker) publish(status *v1.PodStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := &w.shown.Status
	if equality.Semantic.DeepEqual(old, status) {
		return
	}
	if old.Phase != status.Phase {
		w.log.Info("pod phase", "phase", string(status.Phase), "reason", status.Reason)
	}
	w.reveal(*status)
}

// record publishes a sentence about the pod or one of its containers.
func (w *worker) record(kind, reason, container, message string) {
	w.annotated(kind, reason, container, message, nil)
}

func (w *worker) annotated(kind, reason, container, message string, annotations map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.e.hub.publish(Event{Type: Recorded, Pod: w.shown, Record: &Record{
		Time: w.e.clock.Now(), Type: kind, Reason: reason, Message: message,
		Container: container, FieldPath: fieldPath(w.pod, container), Annotations: annotations,
	}})
}

func fieldPath(pod *v1.Pod, container string) string {
	named := func(c v1.Container) bool { return c.Name == container }
	switch {
	case container == "":
		return ""
	case slices.ContainsFunc(pod.Spec.InitContainers, named):
		return "spec.initContainers{" + container + "}"
	case slices.ContainsFunc(pod.Spec.Containers, named):
		return "spec.containers{" + container + "}"
	}
	return "spec.ephemeralContainers{" + container + "}"
}

// remember keeps of a view what other goroutines ask for.
func (w *worker) remember(view lifecycle.View) {
	picture := map[string]sandboxView{}
	for _, sb := range view.Sandboxes {
		picture[sb.ID] = sandboxView{attempt: sb.Attempt, ips: sb.IPs, target: map[string]string{}}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var logs []runningLog
	for _, c := range view.Containers {
		if c.State != lifecycle.Running {
			continue
		}
		if sb, ok := picture[c.SandboxID]; ok {
			sb.target[c.Name] = c.ID
		}
		logs = append(logs, runningLog{c.ID, filepath.Join(
			podspec.LogDirectory(w.e.cfg.LogDir, w.pod), podspec.LogPath(c.Name, int(c.RestartCount)))})
	}
	w.picture, w.logs = picture, logs
}
