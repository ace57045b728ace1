package stats

import (
	"context"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsapi "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Usage is what metrics.k8s.io tells: processors and memory used, for `kubectl
// top` and autoscalers. Nothing is measured unless somebody asks; the first
// answer in a while takes a moment, a rate being the difference of two
// measurements.
type Usage struct {
	provider *Provider
	// Node is the node's object, whose labels are selected by; nil is none.
	node func() *v1.Node
}

// NewUsage makes one of a provider.
func NewUsage(p *Provider, node func() *v1.Node) *Usage { return &Usage{p, node} }

// rateTime is how far two measurements are apart at least: a little more than
// the age up to which the provider has them from memory.
const rateTime = 1100 * time.Millisecond

// look is a summary with rates in it.
func (u *Usage) look(ctx context.Context) (*statsapi.Summary, error) {
	s, err := u.provider.GetCPUAndMemoryStats(ctx)
	if err != nil || rated(s) {
		return s, err
	}
	timer := time.NewTimer(rateTime)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
	}
	return u.provider.GetCPUAndMemoryStats(ctx)
}

func rated(s *statsapi.Summary) bool {
	if s.Node.CPU == nil || s.Node.CPU.UsageNanoCores == nil {
		return false
	}
	return !slices.ContainsFunc(s.Pods, func(p statsapi.PodStats) bool {
		return slices.ContainsFunc(p.Containers, func(c statsapi.ContainerStats) bool { return c.CPU != nil && c.CPU.UsageNanoCores == nil })
	})
}

// used is what both measure; ok is false where something is missing.
func used(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats) (list v1.ResourceList, at metav1.Time, ok bool) {
	if cpu == nil || cpu.UsageNanoCores == nil || memory == nil || memory.WorkingSetBytes == nil {
		return nil, at, false
	}
	return v1.ResourceList{
		v1.ResourceCPU:    *resource.NewScaledQuantity(int64(*cpu.UsageNanoCores), resource.Nano),
		v1.ResourceMemory: *resource.NewQuantity(int64(*memory.WorkingSetBytes), resource.BinarySI),
	}, cpu.Time, true
}

// NodeMetrics are the node's, or none while it isn't measured.
func (u *Usage) NodeMetrics(ctx context.Context) ([]metricsapi.NodeMetrics, error) {
	node := u.node()
	if node == nil {
		return nil, nil
	}
	s, err := u.look(ctx)
	if err != nil {
		return nil, err
	}
	m, ok := NodeMetrics(node, s)
	if !ok {
		return nil, nil
	}
	return []metricsapi.NodeMetrics{m}, nil
}

// NodeMetrics are a node's, by a kubelet's summary of it; ok is false where it
// lacks them.
func NodeMetrics(node *v1.Node, s *statsapi.Summary) (m metricsapi.NodeMetrics, ok bool) {
	usage, at, ok := used(s.Node.CPU, s.Node.Memory)
	return metricsapi.NodeMetrics{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: labels.Set(node.Labels), CreationTimestamp: at},
		Timestamp:  at, Window: metav1.Duration{Duration: rateTime}, Usage: usage,
	}, ok
}

// PodMetrics are those of a namespace's running pods, "" for all. A pod one of
// whose containers isn't measured yet is left out, as metrics-server does.
func (u *Usage) PodMetrics(ctx context.Context, namespace string) ([]metricsapi.PodMetrics, error) {
	s, err := u.look(ctx)
	if err != nil {
		return nil, err
	}
	pods := map[types.UID]*v1.Pod{}
	for _, p := range u.provider.cfg.Pods() {
		pods[p.UID] = p
	}
	var all []metricsapi.PodMetrics
	for i := range s.Pods {
		pod := pods[types.UID(s.Pods[i].PodRef.UID)]
		if pod == nil || namespace != "" && pod.Namespace != namespace {
			continue
		}
		if m, ok := PodMetrics(pod, &s.Pods[i]); ok {
			all = append(all, m)
		}
	}
	return all, nil
}

// PodMetrics are a pod's, by a kubelet's figures of it; ok is false unless all
// its containers are measured.
func PodMetrics(pod *v1.Pod, figures *statsapi.PodStats) (m metricsapi.PodMetrics, ok bool) {
	m.ObjectMeta = metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace, Labels: labels.Set(pod.Labels)}
	m.Window = metav1.Duration{Duration: rateTime}
	for _, c := range figures.Containers {
		usage, at, ok := used(c.CPU, c.Memory)
		if !ok {
			return m, false
		}
		m.Containers = append(m.Containers, metricsapi.ContainerMetrics{Name: c.Name, Usage: usage})
		m.Timestamp, m.CreationTimestamp = at, at
	}
	return m, len(m.Containers) > 0
}
