package engine

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/lifecycle"
)

const (
	// usagePeriod is how often volumes with a limit are measured.
	usagePeriod = 10 * time.Second
	// evictionGrace is what the containers of an evicted pod get, in seconds.
	evictionGrace = 1
)

// Evict ends a pod as failed: reason and message become its status's.
// condition is a DisruptionTarget condition, or nil. Evicting a pod that is
// ending already, or unknown, does nothing.
func (e *Engine) Evict(uid PodUID, reason, message string, condition *v1.PodCondition) {
	e.mu.Lock()
	w, ok := e.pods[uid]
	e.mu.Unlock()
	if ok {
		w.evict(reason, message, condition)
	}
}

func (w *worker) evict(reason, message string, condition *v1.PodCondition) {
	w.mu.Lock()
	again := w.evicted
	w.evicted = true
	w.mu.Unlock()
	if again {
		return
	}
	grace := int64(evictionGrace)
	w.record(v1.EventTypeWarning, reason, "", message)
	w.post(lifecycle.Evicted{Reason: reason, Message: message, Grace: &grace, Condition: condition})
}

// watchUsage evicts pods whose emptyDirs outgrow their sizeLimit. Those in
// memory can't: the kernel keeps their limit.
func (e *Engine) watchUsage(ctx context.Context) {
	ticker := e.clock.NewTicker(usagePeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		for _, w := range e.limited() {
			pod := w.desired()
			usages, err := e.volumes.Usages(ctx, pod)
			if err != nil {
				if ctx.Err() == nil {
					w.log.Error("measuring volumes failed", "err", err)
				}
				continue
			}
			for _, u := range usages {
				if message := u.Exceeded(); message != "" && !u.Memory {
					w.evict("Evicted", message, nil)
					break
				}
			}
		}
	}
}

// limited are the running pods that have an emptyDir with a limit on disk.
func (e *Engine) limited() []*worker {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []*worker
	for _, w := range e.pods {
		pod := w.snapshot()
		if pod.Status.Phase != v1.PodRunning || pod.DeletionTimestamp != nil {
			continue
		}
		for i := range pod.Spec.Volumes {
			if d := pod.Spec.Volumes[i].EmptyDir; d != nil && d.SizeLimit != nil && d.Medium == v1.StorageMediumDefault {
				list = append(list, w)
				break
			}
		}
	}
	return list
}
