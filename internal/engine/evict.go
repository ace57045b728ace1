package engine

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/lifecycle"
	"unipod.dev/unipod/internal/volume"
)

// Eviction ends a pod whatever it would like to do.
type Eviction struct {
	// Reason and Message become the failed pod's.
	Reason, Message string
	// Grace is what its containers get at most; nil means the pod's own.
	Grace *time.Duration
	// Condition is a DisruptionTarget condition, or nil.
	Condition *v1.PodCondition
	// Annotations go with the record of the eviction; Quiet makes none.
	Annotations map[string]string
	Quiet       bool
}

// Evict ends a pod as failed. Evicting a pod that is ending already, has ended
// or is unknown does nothing.
func (e *Engine) Evict(uid PodUID, ev Eviction) {
	if w := e.worker(uid); w != nil {
		w.evict(ev)
	}
}

func (e *Engine) worker(uid PodUID) *worker {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pods[uid]
}

func (w *worker) evict(ev Eviction) {
	w.mu.Lock()
	again := w.evicted
	w.evicted = true
	w.mu.Unlock()
	if again {
		return
	}
	if !ev.Quiet {
		w.annotated(v1.EventTypeWarning, ev.Reason, "", ev.Message, ev.Annotations)
	}
	event := lifecycle.Evicted{Reason: ev.Reason, Message: ev.Message, Condition: ev.Condition}
	if ev.Grace != nil {
		event.Grace = graceSeconds(w.desired(), ev.Grace)
	}
	w.post(event)
}

// Pods are the present pods with their present status, in no order. They are
// shared and must not be modified.
func (e *Engine) Pods() []*v1.Pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	pods := make([]*v1.Pod, 0, len(e.pods))
	for _, w := range e.pods {
		pods = append(pods, w.snapshot())
	}
	return pods
}

// Usages measures a pod's own volumes.
func (e *Engine) Usages(ctx context.Context, pod *v1.Pod) ([]volume.Usage, error) {
	return e.volumes.Usages(ctx, pod)
}

// PruneEnded has what ended pods keep in the runtime removed, with their logs;
// their status stays. It returns at once.
func (e *Engine) PruneEnded() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.pods {
		switch w.snapshot().Status.Phase {
		case v1.PodSucceeded, v1.PodFailed:
			w.post(lifecycle.Prune{})
		}
	}
}

// admit asks whether the node takes in a pod it sees for the first time. What
// is in the runtime, or ran once, was taken in before.
func (w *worker) admit(pod *v1.Pod, view lifecycle.View) (lifecycle.Event, bool) {
	if w.admitted || w.e.cfg.Admit == nil {
		return nil, false
	}
	w.admitted = true
	if len(view.Sandboxes) > 0 || len(view.Containers) > 0 || pod.DeletionTimestamp != nil ||
		pod.Status.Phase != "" && pod.Status.Phase != v1.PodPending {
		return nil, false
	}
	reason, message := w.e.cfg.Admit(pod)
	if reason == "" {
		return nil, false
	}
	w.log.Warn("pod rejected", "reason", reason, "message", message)
	w.record(v1.EventTypeWarning, reason, "", message)
	return lifecycle.Evicted{Reason: reason, Message: "Pod was rejected: " + message, Rejected: true}, true
}
