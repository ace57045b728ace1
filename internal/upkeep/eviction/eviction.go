// Package eviction decides when a node is short of memory, disk, inodes or
// process IDs, and which of its pods must go. It is pure: [Step] takes what the
// machine has left, the memory of earlier steps and the time, and returns the
// node's conditions and what is to be reclaimed; [Rank] and [Of] say of whom
// and with which words. It does no I/O and reads no clock, and what it is
// given it never modifies.
//
// Semantics, defaults and words are kubelet's (k8s.io/kubernetes v1.37,
// pkg/kubelet/eviction), with kubelet's own types of thresholds. Two of its
// signals are left out: containerfs.* always watches the file system of
// nodefs.* or imagefs.* over again, and allocatableMemory.available equals
// memory.available on a node that reserves nothing.
//
// Floor 5: it imports Kubernetes' types and helpers only.
package eviction

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
)

// The resources that have no name in Kubernetes' API.
const (
	resourceInodes v1.ResourceName = "inodes"
	resourcePids   v1.ResourceName = "pids"
)

// A signal is what kubelet calls something that can run short.
type signal struct {
	condition v1.NodeConditionType
	resource  v1.ResourceName
	observe   func(*statsapi.NodeStats) (observation, bool)
}

// observation is how much there is of something, and how much is left.
type observation struct{ available, capacity *resource.Quantity }

var signals = map[evictionapi.Signal]signal{
	evictionapi.SignalMemoryAvailable: {v1.NodeMemoryPressure, v1.ResourceMemory, func(n *statsapi.NodeStats) (observation, bool) {
		if n.Memory == nil || n.Memory.AvailableBytes == nil || n.Memory.WorkingSetBytes == nil {
			return observation{}, false
		}
		return observe(resource.BinarySI, int64(*n.Memory.AvailableBytes), int64(*n.Memory.AvailableBytes+*n.Memory.WorkingSetBytes)), true
	}},
	evictionapi.SignalNodeFsAvailable:   {v1.NodeDiskPressure, v1.ResourceEphemeralStorage, func(n *statsapi.NodeStats) (observation, bool) { return bytesOf(n.Fs) }},
	evictionapi.SignalNodeFsInodesFree:  {v1.NodeDiskPressure, resourceInodes, func(n *statsapi.NodeStats) (observation, bool) { return inodesOf(n.Fs) }},
	evictionapi.SignalImageFsAvailable:  {v1.NodeDiskPressure, v1.ResourceEphemeralStorage, func(n *statsapi.NodeStats) (observation, bool) { return bytesOf(imageFs(n)) }},
	evictionapi.SignalImageFsInodesFree: {v1.NodeDiskPressure, resourceInodes, func(n *statsapi.NodeStats) (observation, bool) { return inodesOf(imageFs(n)) }},
	evictionapi.SignalPIDAvailable: {v1.NodePIDPressure, resourcePids, func(n *statsapi.NodeStats) (observation, bool) {
		if n.Rlimit == nil || n.Rlimit.MaxPID == nil || n.Rlimit.NumOfRunningProcesses == nil {
			return observation{}, false
		}
		return observe(resource.DecimalSI, *n.Rlimit.MaxPID-*n.Rlimit.NumOfRunningProcesses, *n.Rlimit.MaxPID), true
	}},
}

func imageFs(n *statsapi.NodeStats) *statsapi.FsStats {
	if n.Runtime == nil {
		return nil
	}
	return n.Runtime.ImageFs
}

func observe(format resource.Format, available, capacity int64) observation {
	return observation{resource.NewQuantity(available, format), resource.NewQuantity(capacity, format)}
}

func bytesOf(fs *statsapi.FsStats) (observation, bool) {
	if fs == nil || fs.AvailableBytes == nil || fs.CapacityBytes == nil {
		return observation{}, false
	}
	return observe(resource.BinarySI, int64(*fs.AvailableBytes), int64(*fs.CapacityBytes)), true
}

// inodesOf has no observation of a file system that makes inodes as it needs
// them, as btrfs does: it says it has none.
func inodesOf(fs *statsapi.FsStats) (observation, bool) {
	if fs == nil || fs.InodesFree == nil || fs.Inodes == nil || *fs.Inodes == 0 {
		return observation{}, false
	}
	return observe(resource.DecimalSI, int64(*fs.InodesFree), int64(*fs.Inodes)), true
}

// Policy is when the node counts as short of something.
type Policy struct {
	Thresholds []evictionapi.Threshold
	// MaxPodGrace bounds the grace of pods evicted for a soft threshold.
	MaxPodGrace time.Duration
	// Transition is how long a condition outlives its cause.
	Transition time.Duration
}

// DefaultTransition is kubelet's.
const DefaultTransition = 5 * time.Minute

// State is the memory of earlier steps. The zero value is a node just started.
type State struct {
	// since is when a threshold was first met, by its place in the policy; it is
	// forgotten once the threshold is no longer met, its minimum reclaim
	// included.
	since map[int]time.Time
	// driving are the thresholds whose grace was over at the last step: they
	// count as met until their minimum reclaim is reached.
	driving map[int]bool
	// seen is when a condition was last observed.
	seen map[v1.NodeConditionType]time.Time
}

// Output is what a step found.
type Output struct {
	// Conditions are those that hold, in order.
	Conditions []v1.NodeConditionType
	// Reclaim is what has to be got back now, nil if nothing has to.
	Reclaim *Reclaim
}

// Reclaim says what the node is short of.
type Reclaim struct {
	Signal   evictionapi.Signal
	Resource v1.ResourceName
	// Hard: pods that must go for it go at once.
	Hard bool
	// quantity and available are the threshold and what was left.
	quantity, available *resource.Quantity
}

// Step looks at the node.
func Step(p Policy, s State, now time.Time, node *statsapi.NodeStats) (State, Output) {
	next := State{since: map[int]time.Time{}, driving: map[int]bool{}, seen: map[v1.NodeConditionType]time.Time{}}
	for c, at := range s.seen {
		next.seen[c] = at
	}
	var due []int
	for i, t := range p.Thresholds {
		if !met(t, node, s.driving[i]) {
			continue
		}
		since, known := s.since[i]
		if !known {
			since = now
		}
		next.since[i] = since
		next.seen[signals[t.Signal].condition] = now
		if now.Sub(since) >= t.GracePeriod {
			next.driving[i] = true
			due = append(due, i)
		}
	}
	out := Output{}
	for c, at := range next.seen {
		// What is observed now holds however short the transition is.
		if at.Equal(now) || now.Sub(at) < p.Transition {
			out.Conditions = append(out.Conditions, c)
		}
	}
	slices.Sort(out.Conditions)
	if len(due) == 0 {
		return next, out
	}
	// Memory first: it is what kills at random.
	slices.SortStableFunc(due, func(a, b int) int {
		return cmp.Compare(rank(p.Thresholds[a].Signal), rank(p.Thresholds[b].Signal))
	})
	t := p.Thresholds[due[0]]
	out.Reclaim = &Reclaim{Signal: t.Signal, Resource: signals[t.Signal].resource, Hard: t.GracePeriod == 0}
	if o, ok := signals[t.Signal].observe(node); ok {
		out.Reclaim.quantity, out.Reclaim.available = evictionapi.GetThresholdQuantity(t.Value, o.capacity), o.available
	}
	return next, out
}

func rank(s evictionapi.Signal) int {
	if s == evictionapi.SignalMemoryAvailable {
		return 0
	}
	return 1
}

// Relieved tells whether no threshold is met any more, their minimum reclaims
// included: what was reclaimed on the node was enough.
func Relieved(p Policy, node *statsapi.NodeStats) bool {
	return !slices.ContainsFunc(p.Thresholds, func(t evictionapi.Threshold) bool { return met(t, node, true) })
}

func met(t evictionapi.Threshold, node *statsapi.NodeStats, reclaim bool) bool {
	o, ok := signals[t.Signal].observe(node)
	if !ok {
		return false
	}
	quantity := evictionapi.GetThresholdQuantity(t.Value, o.capacity)
	if reclaim && t.MinReclaim != nil {
		quantity.Add(*evictionapi.GetThresholdQuantity(*t.MinReclaim, o.capacity))
	}
	return quantity.Cmp(*o.available) > 0
}

// Layout is which file systems the node has.
type Layout struct {
	// ImageFs: images are on a file system of their own.
	ImageFs bool
	// SplitImageFs: they are, but the containers' layers aren't.
	SplitImageFs bool
}

// Frees tells what the node itself can give back: dead containers, unused
// images.
func (r *Reclaim) Frees(l Layout) (containers, images bool) {
	switch r.Signal {
	case evictionapi.SignalNodeFsAvailable, evictionapi.SignalNodeFsInodesFree:
		return !l.ImageFs || l.SplitImageFs, !l.ImageFs
	case evictionapi.SignalImageFsAvailable, evictionapi.SignalImageFsInodesFree:
		return !l.SplitImageFs, true
	}
	return false, false
}
