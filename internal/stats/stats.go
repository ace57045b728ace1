// Package stats tells what pods and the machine use, in the terms of kubelet's
// summary (k8s.io/kubelet/pkg/apis/stats/v1alpha1).
//
// It owns nothing but a short memory of what it measured. A pod's figures come
// from the runtime by the CRI; those of volumes, logs and the machine from the
// kernel. A runtime without figures of pods (only of containers) is added up.
// What a caller may have from memory is bounded by age, and callers that come
// at the same time share one measurement; all methods may be called
// concurrently. Results are shared: they must not be modified.
//
// The two costs are kept apart: [Provider.Node] reads a handful of the
// kernel's files and may be asked every few seconds, whereas the figures of
// pods cost some dozens of files each.
//
// Floor 6, beside the engine: over volume, podspec and the CRI line.
package stats

import (
	"context"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/volume"
)

// Config is what a Provider asks. CRI, PodsDir, LogDir and Pods are required.
type Config struct {
	CRI      cri.Service
	NodeName string
	// PodsDir holds the pods' directories; its file system is the node's.
	PodsDir string
	// LogDir holds the pods' log directories.
	LogDir string
	// Pods are those of the node, with their status; they aren't modified.
	Pods func() []*v1.Pod
	// Volumes measures a pod's own volumes; nil leaves them out.
	Volumes func(context.Context, *v1.Pod) ([]volume.Usage, error)
	// Clock defaults to the real one, Log to slog.Default(), Proc to /proc.
	Clock clock.PassiveClock
	Log   *slog.Logger
	Proc  string
}

const (
	// maxAge is how old a summary may be that needn't be new, as kubelet's.
	maxAge = 10 * time.Second
	// volumesAge is how old the figures of volumes may be: they cost a stat per
	// file.
	volumesAge = time.Minute
	// imageFsAge is how old the runtime's own count of its files may be, and
	// the place where they are.
	imageFsAge = time.Minute
)

// Provider measures. Make one with [New].
type Provider struct {
	cfg    Config
	bootAt time.Time

	mu      sync.Mutex // serialises measuring
	full    *statsapi.Summary
	fullAt  time.Time
	light   *statsapi.Summary // CPU and memory only
	lightAt time.Time
	volumes map[string]volumesSeen // by pod UID
	rates   rates

	fsMu    sync.Mutex
	imageFs imageFs
}

type volumesSeen struct {
	at    time.Time
	usage []volume.Usage
}

// New makes a Provider; it measures nothing yet.
func New(cfg Config) *Provider {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	return &Provider{
		cfg: cfg, bootAt: bootTime(cfg.Proc), volumes: map[string]volumesSeen{}, rates: rates{},
	}
}

// Get is the summary of the node and its pods; update asks for one made after
// the call. It has the signature of kubelet's summary provider.
func (p *Provider) Get(ctx context.Context, update bool) (*statsapi.Summary, error) {
	asked := p.cfg.Clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.full != nil && (p.fullAt.After(asked) || !update && asked.Sub(p.fullAt) < maxAge) {
		return p.full, nil
	}
	began := p.cfg.Clock.Now()
	summary, err := p.summarize(ctx, true)
	if err != nil {
		return nil, err
	}
	p.full, p.fullAt = summary, began
	return summary, nil
}

// GetCPUAndMemoryStats is the summary's part that changes fast and costs
// little: what autoscalers and kubectl top ask for.
func (p *Provider) GetCPUAndMemoryStats(ctx context.Context) (*statsapi.Summary, error) {
	asked := p.cfg.Clock.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	// Rates need some time between two measurements.
	if p.light != nil && asked.Sub(p.lightAt) < time.Second {
		return p.light, nil
	}
	summary, err := p.summarize(ctx, false)
	if err != nil {
		return nil, err
	}
	p.light, p.lightAt = summary, p.cfg.Clock.Now()
	return summary, nil
}

func (p *Provider) summarize(ctx context.Context, disks bool) (*statsapi.Summary, error) {
	pods, err := p.podStats(ctx, "", disks)
	if err != nil {
		return nil, err
	}
	node := p.machine(!disks)
	if cpu := node.CPU; cpu != nil {
		cpu.UsageNanoCores = p.rates.rate("node", cpu.Time.Time, *cpu.UsageCoreNanoSeconds)
	}
	if disks {
		p.disks(ctx, node)
	}
	node.SystemContainers = []statsapi.ContainerStats{p.self(), p.allPods(node, pods)}
	p.rates.sweep(p.cfg.Clock.Now())
	return &statsapi.Summary{Node: *node, Pods: pods}, nil
}

// Node is what the machine has left, measured now.
func (p *Provider) Node(ctx context.Context) *statsapi.NodeStats {
	node := p.machine(true)
	p.disks(ctx, node)
	return node
}

// Pod are one pod's figures, volumes included, measured now. A pod the runtime
// has no figures of is nil without an error.
func (p *Provider) Pod(ctx context.Context, pod *v1.Pod) (*statsapi.PodStats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.volumes, string(pod.UID))
	pods, err := p.podStats(ctx, pod.UID, true)
	if err != nil || len(pods) == 0 {
		return nil, err
	}
	return &pods[0], nil
}
