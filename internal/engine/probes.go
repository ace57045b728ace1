package engine

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/lifecycle"
)

// probeKey names a probe that runs.
type probeKey struct {
	id   string
	kind lifecycle.ProbeKind
}

// probe makes the running probes those wanted.
func (w *worker) probe(ctx context.Context, pod *v1.Pod, wanted []lifecycle.Probe) {
	keep := map[probeKey]bool{}
	for _, p := range wanted {
		key := probeKey{p.ID, p.Kind}
		keep[key] = true
		if w.probers[key] != nil {
			continue
		}
		c := findContainer(pod, p.Container)
		ctx, cancel := context.WithCancel(ctx)
		w.probers[key] = cancel
		w.begin(func() { w.keepProbing(ctx, c, p) })
	}
	for key, cancel := range w.probers {
		if !keep[key] {
			cancel()
			delete(w.probers, key)
		}
	}
}

func specOf(c *v1.Container, kind lifecycle.ProbeKind) *v1.Probe {
	switch kind {
	case lifecycle.Startup:
		return c.StartupProbe
	case lifecycle.Readiness:
		return c.ReadinessProbe
	}
	return c.LivenessProbe
}

// keepProbing probes a container each period and posts the outcomes, until ctx
// ends. A run of like outcomes is posted only up to the threshold: what
// follows can't change anything, and the pod need not be looked at for it.
func (w *worker) keepProbing(ctx context.Context, c *v1.Container, p lifecycle.Probe) {
	spec := specOf(c, p.Kind)
	timer := w.e.clock.NewTimer(max(p.First.Sub(w.e.clock.Now()), 0))
	select {
	case <-ctx.Done():
		timer.Stop()
		return
	case <-timer.C():
	}
	ticker := w.e.clock.NewTicker(time.Duration(max(spec.PeriodSeconds, 1)) * time.Second)
	defer ticker.Stop()
	var last bool
	var run int32
	for {
		out := w.e.prober.Probe(ctx, string(p.Kind), spec, w.target(c, p.ID))
		if ctx.Err() != nil {
			return
		}
		w.count(c.Name, p.Kind, out.Void, out.Success)
		if out.Reason != "" {
			w.record(v1.EventTypeWarning, out.Reason, c.Name, out.Message)
		}
		if !out.Void {
			if out.Success != last {
				run = 0
			}
			last, run = out.Success, run+1
			if run <= max(spec.SuccessThreshold, spec.FailureThreshold) {
				w.post(lifecycle.Probed{ID: p.ID, Kind: p.Kind, Success: out.Success})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// ProbeCount is how often a probe of a container had a result, as kubelet
// counts it: "successful", "failed" or "unknown".
type ProbeCount struct {
	Pod       *v1.Pod // not to be modified
	Container string
	Kind      string // Startup, Readiness or Liveness
	Result    string
	Count     int64
}

// counted names a counter of a pod.
type counted struct{ container, kind, result string }

func (w *worker) count(container string, kind lifecycle.ProbeKind, void, success bool) {
	result := "failed"
	switch {
	case void:
		result = "unknown"
	case success:
		result = "successful"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.counts == nil {
		w.counts = map[counted]int64{}
	}
	w.counts[counted{container, string(kind), result}]++
}

// ProbeCounts are the results of all probes of the present pods so far, in no
// order.
func (e *Engine) ProbeCounts() []ProbeCount {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []ProbeCount
	for _, w := range e.pods {
		w.mu.Lock()
		for k, n := range w.counts {
			all = append(all, ProbeCount{w.shown, k.container, k.kind, k.result, n})
		}
		w.mu.Unlock()
	}
	return all
}
