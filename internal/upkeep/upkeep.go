// Package upkeep keeps a node able to run pods: it gives unused images back
// when their disk fills up, watches what the machine has left of memory, disk,
// inodes and process IDs, and ends pods that outgrow their limits of storage
// or that the machine has no room for.
//
// It owns the node's pressure conditions and nothing on disk. What it decides
// is decided by the pure packages eviction and imagegc below it; here it is
// carried out, over the engine and the CRI alone. One look every ten seconds
// reads a handful of the kernel's files; figures of pods are asked for only
// while something is short, or of pods with limits of storage. Where the kernel
// can, it wakes the keeper sooner when memory gets tight.
//
// Floor 7: over the engine and its figures.
package upkeep

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/upkeep/eviction"
	"unipod.dev/unipod/internal/upkeep/imagegc"
)

// Engine is what the keeper asks of internal/engine.
type Engine interface {
	Pods() []*v1.Pod
	Evict(uid types.UID, ev engine.Eviction)
	Delete(uid types.UID, grace *time.Duration)
	PruneEnded()
}

// Stats is what it asks of internal/stats.
type Stats interface {
	Node(context.Context) *statsapi.NodeStats
	Get(ctx context.Context, update bool) (*statsapi.Summary, error)
	Pod(context.Context, *v1.Pod) (*statsapi.PodStats, error)
	Separate(context.Context) (images, split bool, err error)
}

// Config is what a Keeper needs. CRI, Engine and Stats are required.
type Config struct {
	CRI    cri.Service
	Engine Engine
	Stats  Stats
	// Eviction without thresholds keeps only the pods' own limits.
	Eviction eviction.Policy
	// Images is when unused images go.
	Images imagegc.Policy
	// Record takes what kubelet would write as events of the node; nil drops
	// them, they are logged in any case.
	Record func(kind, reason, message string)
	// Clock defaults to the real one, Log to slog.Default().
	Clock clock.WithTicker
	Log   *slog.Logger
	// Pressure is the kernel's file of memory pressure; default
	// /proc/pressure/memory.
	Pressure string
}

const (
	// lookPeriod is kubelet's.
	lookPeriod = 10 * time.Second
	// imagePeriod is how often images are collected, as kubelet's.
	imagePeriod = 5 * time.Minute
	// An evicted pod is waited for before the next look, so that its share is
	// not missed twice.
	goneTimeout, goneCheck = 30 * time.Second, 250 * time.Millisecond
)

// Keeper keeps one node. Make it with [New]; all methods may be called
// concurrently.
type Keeper struct {
	cfg     Config
	changed chan struct{}

	mu         sync.Mutex
	conditions []v1.NodeConditionType

	// looks belongs to Run's goroutine.
	looks eviction.State

	imagesMu sync.Mutex // one collection at a time
	images   imagegc.State
	failed   bool // the last collection
}

// New makes a Keeper; nothing happens before Run.
func New(cfg Config) (*Keeper, error) {
	if cfg.CRI == nil || cfg.Engine == nil || cfg.Stats == nil {
		return nil, fmt.Errorf("upkeep: CRI, Engine and Stats are required: %w", errdefs.ErrInvalidArgument)
	}
	if err := cfg.Images.Check(); err != nil {
		return nil, fmt.Errorf("upkeep: %w", err)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Pressure = cmp.Or(cfg.Pressure, "/proc/pressure/memory")
	return &Keeper{cfg: cfg, changed: make(chan struct{}, 1)}, nil
}

// Conditions are the pressure conditions that hold now.
func (k *Keeper) Conditions() []v1.NodeConditionType {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.conditions)
}

// Changed gets a value whenever the conditions have changed; it is for one
// reader.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// words are a condition's reasons and messages, true and false, in kubelet's
// words.
var words = map[v1.NodeConditionType][2][2]string{
	v1.NodeMemoryPressure: {{"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"}, {"KubeletHasSufficientMemory", "kubelet has sufficient memory available"}},
	v1.NodeDiskPressure:   {{"KubeletHasDiskPressure", "kubelet has disk pressure"}, {"KubeletHasNoDiskPressure", "kubelet has no disk pressure"}},
	v1.NodePIDPressure:    {{"KubeletHasInsufficientPID", "kubelet has insufficient PID available"}, {"KubeletHasSufficientPID", "kubelet has sufficient PID available"}},
}

// NodeConditions are the pressure conditions as a Node's status has them,
// without times.
func (k *Keeper) NodeConditions() []v1.NodeCondition {
	now := k.Conditions()
	var all []v1.NodeCondition
	for _, t := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure} {
		status, say := v1.ConditionFalse, words[t][1]
		if slices.Contains(now, t) {
			status, say = v1.ConditionTrue, words[t][0]
		}
		all = append(all, v1.NodeCondition{Type: t, Status: status, Reason: say[0], Message: say[1]})
	}
	return all
}

// Admit tells whether the node takes a pod in now: a reason refuses it. It is
// an engine's Admit.
func (k *Keeper) Admit(pod *v1.Pod) (reason, message string) {
	return eviction.Admit(k.Conditions(), pod)
}

// Run keeps the node until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tight := make(chan struct{}, 1)
	if slices.ContainsFunc(k.cfg.Eviction.Thresholds, aboutMemory) {
		wg.Go(func() {
			if err := watchPressure(ctx, k.cfg.Pressure, tight); err != nil {
				k.cfg.Log.Debug("the kernel doesn't tell of memory pressure; looking every "+lookPeriod.String(), "err", err)
			}
		})
	}
	wg.Go(func() { k.collectImages(ctx) })
	ticker := k.cfg.Clock.NewTicker(lookPeriod)
	defer ticker.Stop()
	for {
		for k.look(ctx) && ctx.Err() == nil { // one pod at a time, until it is enough
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		case <-tight:
		}
	}
}

// record tells of the node.
func (k *Keeper) record(kind, reason, message string) {
	level := slog.LevelInfo
	if kind == v1.EventTypeWarning {
		level = slog.LevelWarn
	}
	k.cfg.Log.Log(context.Background(), level, message, "reason", reason)
	if k.cfg.Record != nil {
		k.cfg.Record(kind, reason, message)
	}
}
