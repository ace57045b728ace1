// Package shutdown ends a node's pods in order when the machine shuts down:
// those of low priority first, each group within its own time, critical ones
// last.
//
// It owns an inhibitor of systemd-logind, which holds a shutdown back until
// the pods have ended or their time is up, and the drop-in file by which
// logind is made to wait that long. Machines without logind shut down as they
// like; that is logged and tried again. What is heard on the bus is believed
// of logind only.
//
// The semantics and words are kubelet's (k8s.io/kubernetes v1.37,
// pkg/kubelet/nodeshutdown).
//
// Floor 7: over the engine.
package shutdown

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
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/engine"
)

// Kubelet's words.
const (
	reason         = "Terminated"
	message        = "Pod was terminated in response to imminent node shutdown."
	rejectReason   = "NodeShutdown"
	rejectMessage  = "Pod was rejected as the node is shutting down."
	recordReason   = "NodeShutdown"
	reconnectAfter = time.Second
	endCheck       = 50 * time.Millisecond
)

// Period is how long the pods of a priority, and of those above it up to the
// next period's, get at a shutdown.
type Period struct {
	Priority int32
	Grace    time.Duration
}

// Periods are two: critical pods get the last part of the whole time. A total
// of zero switches the whole off.
func Periods(total, critical time.Duration) ([]Period, error) {
	switch {
	case total < 0 || critical < 0:
		return nil, fmt.Errorf("the grace period of a shutdown is negative: %w", errdefs.ErrInvalidArgument)
	case critical > total:
		return nil, fmt.Errorf("critical pods can't get more of a shutdown's grace period (%v) than there is (%v): %w", critical, total, errdefs.ErrInvalidArgument)
	case total == 0:
		return nil, nil
	}
	return []Period{{scheduling.DefaultPriorityWhenNoDefaultClassExists, total - critical}, {scheduling.SystemCriticalPriority, critical}}, nil
}

// Engine is what is asked of internal/engine.
type Engine interface {
	Pods() []*v1.Pod
	Evict(uid types.UID, ev engine.Eviction)
}

// Config is what a Manager needs. Engine and Periods are required.
type Config struct {
	Engine  Engine
	Periods []Period
	// Record takes what kubelet would write as events of the node; nil drops
	// them.
	Record func(kind, reason, message string)
	// Bus is the address of the message bus; "" means the system's.
	Bus string
	// DropIns is where logind reads its settings; default
	// /etc/systemd/logind.conf.d.
	DropIns string
	// Clock defaults to the real one, Log to slog.Default().
	Clock clock.WithTicker
	Log   *slog.Logger
}

// Manager waits for the machine's shutdown. Make it with [New]; all methods may
// be called concurrently.
type Manager struct {
	cfg     Config
	changed chan struct{}

	mu   sync.Mutex
	down bool
}

// New makes a Manager; nothing happens before Run.
func New(cfg Config) (*Manager, error) {
	if cfg.Engine == nil || len(cfg.Periods) == 0 {
		return nil, fmt.Errorf("shutdown: Engine and Periods are required: %w", errdefs.ErrInvalidArgument)
	}
	cfg.Periods = slices.Clone(cfg.Periods)
	slices.SortFunc(cfg.Periods, func(a, b Period) int { return cmp.Compare(a.Priority, b.Priority) })
	for i, p := range cfg.Periods {
		if p.Grace < 0 || i > 0 && p.Priority == cfg.Periods[i-1].Priority {
			return nil, fmt.Errorf("shutdown: the period of priority %d is negative or there twice: %w", p.Priority, errdefs.ErrInvalidArgument)
		}
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.DropIns = cmp.Or(cfg.DropIns, "/etc/systemd/logind.conf.d")
	return &Manager{cfg: cfg, changed: make(chan struct{}, 1)}, nil
}

// ShuttingDown tells whether the machine is about to go.
func (m *Manager) ShuttingDown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down
}

// Changed gets a value whenever that has changed; it is for one reader.
func (m *Manager) Changed() <-chan struct{} { return m.changed }

// Admit refuses pods on a machine that is about to go. It is an engine's Admit.
func (m *Manager) Admit(*v1.Pod) (reason, message string) {
	if m.ShuttingDown() {
		return rejectReason, rejectMessage
	}
	return "", ""
}

// Run waits for shutdowns until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	failed := false
	for {
		err := m.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !failed { // a machine without logind needn't hear of it each second
			m.cfg.Log.Warn("a shutdown of the machine can't be held back until pods have ended; trying again", "err", err)
		}
		failed = err != nil
		timer := m.cfg.Clock.NewTimer(reconnectAfter)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C():
		}
	}
}

// serve holds shutdowns back until ctx ends or the bus is gone.
func (m *Manager) serve(ctx context.Context) error {
	l, err := connect(ctx, m.cfg.Bus)
	if err != nil {
		return err
	}
	defer l.close()
	if err := m.askForTime(ctx, l); err != nil {
		return err
	}
	events, err := l.shutdowns()
	if err != nil {
		return err
	}
	lock, err := l.inhibit(ctx)
	if err != nil {
		return err
	}
	defer func() { lock.Close() }()
	m.cfg.Log.Info("shutdowns of the machine wait for the pods", "for", m.total())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case down, ok := <-events:
			if !ok {
				return fmt.Errorf("the message bus is gone: %w", errdefs.ErrUnavailable)
			}
			m.set(down)
			if down {
				m.endPods(ctx)
				lock.Close() // the machine may go
				continue
			}
			next, err := l.inhibit(ctx)
			if err != nil {
				return err
			}
			lock.Close()
			lock = next
		}
	}
}

func (m *Manager) set(down bool) {
	m.mu.Lock()
	m.down = down
	m.mu.Unlock()
	text := "Shutdown manager detected shutdown cancellation"
	if down {
		text = "Shutdown manager detected shutdown event"
	}
	m.cfg.Log.Warn(text)
	if m.cfg.Record != nil {
		m.cfg.Record(v1.EventTypeNormal, recordReason, text)
	}
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *Manager) total() (sum time.Duration) {
	for _, p := range m.cfg.Periods {
		sum += p.Grace
	}
	return sum
}

// group are the pods that end together.
type group struct {
	grace time.Duration
	pods  []*v1.Pod
}

// groups sorts pods into periods: each pod into that of the highest priority
// that is not above its own; those below all belong to the lowest.
func groups(periods []Period, pods []*v1.Pod) []group {
	all := make([]group, len(periods))
	for i, p := range periods {
		all[i].grace = p.Grace
	}
	for _, pod := range pods {
		priority := corev1helpers.PodPriority(pod)
		i := len(periods) - 1
		for i > 0 && periods[i].Priority > priority {
			i--
		}
		all[i].pods = append(all[i].pods, pod)
	}
	return all
}

// endPods ends the pods, one group after the other. A group without pods takes
// no time.
func (m *Manager) endPods(ctx context.Context) {
	for _, g := range groups(m.cfg.Periods, m.active()) {
		for _, pod := range g.pods {
			grace := g.grace
			if own := pod.Spec.TerminationGracePeriodSeconds; own != nil {
				grace = min(grace, time.Duration(*own)*time.Second)
			}
			m.cfg.Log.Info("ending a pod for the shutdown", "pod", pod.Namespace+"/"+pod.Name, "uid", string(pod.UID), "grace", grace)
			m.cfg.Engine.Evict(pod.UID, engine.Eviction{
				Reason: reason, Message: message, Grace: &grace, Quiet: true,
				Condition: &v1.PodCondition{
					Type: v1.DisruptionTarget, ObservedGeneration: pod.Generation, Status: v1.ConditionTrue,
					Reason: v1.PodReasonTerminationByKubelet, Message: message,
				},
			})
		}
		m.await(ctx, g)
	}
}

func (m *Manager) active() []*v1.Pod {
	return slices.DeleteFunc(m.cfg.Engine.Pods(), func(pod *v1.Pod) bool {
		return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
	})
}

// await waits until a group's pods have ended, or their time is up.
func (m *Manager) await(ctx context.Context, g group) {
	waits := map[types.UID]bool{}
	for _, pod := range g.pods {
		waits[pod.UID] = true
	}
	timeout := m.cfg.Clock.NewTimer(g.grace)
	defer timeout.Stop()
	ticker := m.cfg.Clock.NewTicker(endCheck)
	defer ticker.Stop()
	for slices.ContainsFunc(m.active(), func(pod *v1.Pod) bool { return waits[pod.UID] }) {
		select {
		case <-ctx.Done():
			return
		case <-timeout.C():
			m.cfg.Log.Warn("the time of these pods is up", "pods", len(g.pods), "grace", g.grace)
			return
		case <-ticker.C():
		}
	}
}
