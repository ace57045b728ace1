// Package register keeps this node's object in the Kubernetes API, as kubelet
// does: it registers the node, reports capacity, conditions, addresses and
// images, and renews the node's lease.
//
// It owns the Node's status and the labels that name the machine; other labels,
// taints and annotations are the administrator's and stay. The status is
// written when it has changed and every five minutes, conditions within a few
// seconds of the change; a write that failed is tried again. Nothing is
// durable here.
//
// Floor: 7, beside node: over client-go and the CRI line.
package register

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/apimachinery/lease"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/machine"
)

const (
	// look is how often the node is looked at, and report how often its status
	// is written although nothing has changed; kubelet's.
	look   = 10 * time.Second
	report = 5 * time.Minute
	// imagesAge is how old the list of images may be.
	imagesAge = time.Minute
	// The lease's life and its renewals, kubelet's.
	leaseSeconds = 40
	leaseRenewal = 10 * time.Second
	// retry is the pause before the registration is tried again.
	retry = 200 * time.Millisecond
)

// Pressure tells what the machine runs short of.
type Pressure interface {
	// NodeConditions are the pressure conditions, without times.
	NodeConditions() []v1.NodeCondition
	// Changed gets a value whenever they have changed.
	Changed() <-chan struct{}
}

// Config describes the node. Client, CRI, Name and Version are required.
type Config struct {
	Client kubernetes.Interface
	CRI    cri.Service
	Name   string
	// Version is Kubernetes' version that the node speaks.
	Version string
	// Root is where the node keeps its files: its file system is the node's
	// ephemeral storage.
	Root      string
	Addresses []netip.Addr // the node's, the primary one first
	// Port is where the kubelet's server listens; 0: there is none.
	Port int32
	// MaxPods bounds the pods of this node; default 1000.
	MaxPods int64
	// Reserved is what pods don't get; by default what kubelet keeps back for
	// its eviction thresholds: 100Mi of memory, a tenth of the storage.
	Reserved v1.ResourceList
	// Labels are the administrator's wish for the node's first registration.
	Labels map[string]string
	// Pressure is nil where nobody looks for any.
	Pressure Pressure
	// Problem says why the node isn't ready beside its runtime, nil if it is.
	Problem func() error
	// Record writes an Event about the node; nil writes none.
	Record func(kind, reason, message string)

	Clock clock.WithTicker // default: the real one
	Log   *slog.Logger     // default: slog.Default()
}

// Node keeps the object. Make one with [New].
type Node struct {
	cfg        Config
	facts      machine.Facts
	registered chan struct{}
	wake       chan struct{}

	mu   sync.Mutex
	node *v1.Node // as the API last returned it; replaced, never modified

	// What follows belongs to Run's goroutine.
	images   []v1.ContainerImage
	imagesAt time.Time
	reported time.Time
}

// New describes the node; nothing is written before Run.
func New(cfg Config) (*Node, error) {
	if cfg.Client == nil || cfg.CRI == nil || cfg.Name == "" || cfg.Version == "" {
		return nil, fmt.Errorf("register: Client, CRI, Name and Version are required: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.MaxPods == 0 {
		cfg.MaxPods = 1000
	}
	if cfg.Record == nil {
		cfg.Record = func(string, string, string) {}
	}
	return &Node{cfg: cfg, facts: machine.Know(cfg.Root), registered: make(chan struct{}), wake: make(chan struct{}, 1)}, nil
}

// Registered is closed once the API has the node.
func (n *Node) Registered() <-chan struct{} { return n.registered }

// Node is the node as the API last returned it, nil before it is registered.
// It must not be modified.
func (n *Node) Node() *v1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node
}

// Fresh asks the API for the node.
func (n *Node) Fresh(ctx context.Context) (*v1.Node, error) {
	node, err := n.cfg.Client.CoreV1().Nodes().Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if err == nil {
		n.keep(node)
	}
	return node, err
}

func (n *Node) keep(node *v1.Node) {
	n.mu.Lock()
	n.node = node
	n.mu.Unlock()
}

// Poke has the node looked at now: its runtime has changed.
func (n *Node) Poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run registers the node and keeps its status and lease until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	if !n.register(ctx) {
		return nil
	}
	var group sync.WaitGroup
	defer group.Wait()
	leases := lease.NewController(n.cfg.Clock, n.cfg.Client, n.cfg.Name, leaseSeconds, nil, leaseRenewal, n.cfg.Name, v1.NamespaceNodeLease, n.ownLease)
	group.Go(func() { leases.Run(ctx) })
	ticker := n.cfg.Clock.NewTicker(look)
	defer ticker.Stop()
	var pressure <-chan struct{}
	if n.cfg.Pressure != nil {
		pressure = n.cfg.Pressure.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		case <-n.wake:
		case <-pressure:
		}
		if err := n.update(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Log.Warn("writing the node's status failed; it is tried again", "node", n.cfg.Name, "err", err)
		}
	}
}

// ownLease makes the lease go with the node.
func (n *Node) ownLease(l *coordinationv1.Lease) error {
	if node := n.Node(); len(l.OwnerReferences) == 0 && node != nil {
		l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	}
	return nil
}

// register makes the node's object, or takes over the one there is. It returns
// false when ctx ended before.
func (n *Node) register(ctx context.Context) bool {
	for {
		err := n.tryRegister(ctx)
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			n.cfg.Log.Warn("registering the node failed; it is tried again", "node", n.cfg.Name, "err", err)
		}
		timer := n.cfg.Clock.NewTimer(retry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C():
		}
	}
	n.cfg.Record(v1.EventTypeNormal, "Starting", "Starting kubelet.")
	close(n.registered)
	return true
}

func (n *Node) tryRegister(ctx context.Context) error {
	nodes := n.cfg.Client.CoreV1().Nodes()
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name, Labels: map[string]string{}}}
	for k, v := range n.cfg.Labels {
		node.Labels[k] = v
	}
	n.label(node)
	n.fill(ctx, &node.Status, nil)
	created, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if err == nil {
		n.cfg.Log.Info("node registered", "node", n.cfg.Name)
		n.keep(created)
		n.reported = n.cfg.Clock.Now()
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	old, err := nodes.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if labelled := old.DeepCopy(); n.label(labelled) {
		if old, err = nodes.Update(ctx, labelled, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	n.keep(old)
	return n.update(ctx)
}

// update writes the node's status if there is something new to say, or if it
// is time. The node is read before: others write to it too.
func (n *Node) update(ctx context.Context) error {
	old, err := n.cfg.Client.CoreV1().Nodes().Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// Somebody deleted it; the machine is still here.
		return n.tryRegister(ctx)
	}
	if err != nil {
		return err
	}
	now := old.DeepCopy()
	n.fill(ctx, &now.Status, &old.Status)
	due := n.cfg.Clock.Since(n.reported) >= report
	if !due && !changed(&old.Status, &now.Status) {
		n.keep(old)
		return nil
	}
	written, _, err := nodeutil.PatchNodeStatus(n.cfg.Client.CoreV1(), types.NodeName(n.cfg.Name), old, now)
	if err != nil {
		return err
	}
	n.reported = n.cfg.Clock.Now()
	n.keep(written)
	n.tell(&old.Status, &now.Status)
	return nil
}

// tell records the conditions that have turned.
func (n *Node) tell(old, now *v1.NodeStatus) {
	for i := range now.Conditions {
		c := &now.Conditions[i]
		before := condition(old, c.Type)
		if before == nil || before.Status == c.Status {
			continue
		}
		event := ""
		switch up := c.Status == v1.ConditionTrue; c.Type {
		case v1.NodeReady:
			event = map[bool]string{true: "NodeReady", false: "NodeNotReady"}[up]
		case v1.NodeMemoryPressure:
			event = map[bool]string{true: "NodeHasInsufficientMemory", false: "NodeHasSufficientMemory"}[up]
		case v1.NodeDiskPressure:
			event = map[bool]string{true: "NodeHasDiskPressure", false: "NodeHasNoDiskPressure"}[up]
		case v1.NodePIDPressure:
			event = map[bool]string{true: "NodeHasInsufficientPID", false: "NodeHasSufficientPID"}[up]
		default:
			continue
		}
		n.cfg.Log.Info("node condition", "node", n.cfg.Name, "condition", string(c.Type), "status", string(c.Status), "reason", c.Reason, "why", c.Message)
		n.cfg.Record(v1.EventTypeNormal, event, fmt.Sprintf("Node %s status is now: %s", n.cfg.Name, event))
	}
}

// label names the machine; it reports whether that was news.
func (n *Node) label(node *v1.Node) (news bool) {
	for k, v := range labels(n.cfg.Name) {
		if node.Labels[k] != v {
			if node.Labels == nil {
				node.Labels = map[string]string{}
			}
			node.Labels[k] = v
			news = true
		}
	}
	return news
}
