package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/ptr"
)

// mirrors shows the manifest directory's pods in the API: each has a mirror
// pod there, which is made again when it is deleted and goes with the
// manifest. The API can't change the pod by it.
type mirrors struct {
	agent *Agent
	queue workqueue.TypedRateLimitingInterface[types.NamespacedName]

	mu     sync.Mutex
	wanted map[types.NamespacedName]*v1.Pod // static pods of the engine
	have   map[types.NamespacedName]*v1.Pod // mirror pods of the API
	// complete: all static pods are known, so a mirror without one is nobody's.
	complete bool
}

func newMirrors(a *Agent) *mirrors {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](100*retryFirst, 30*retryLast)
	return &mirrors{
		agent: a, wanted: map[types.NamespacedName]*v1.Pod{}, have: map[types.NamespacedName]*v1.Pod{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[types.NamespacedName]{Clock: a.cfg.Clock}),
	}
}

func nameOf(pod *v1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// run keeps the mirrors until ctx ends.
func (m *mirrors) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() {
		select {
		case <-ctx.Done(): // nothing was made, so nothing is asked for
		case <-m.agent.cfg.Node.Registered():
		}
		for {
			name, shutdown := m.queue.Get()
			if shutdown {
				return
			}
			if err := m.reconcile(ctx, name); err == nil {
				m.queue.Forget(name)
			} else if ctx.Err() == nil {
				m.agent.log.Warn("mirroring a static pod failed; it is tried again", "pod", name.String(), "err", err)
				m.queue.AddRateLimited(name)
			}
			m.queue.Done(name)
		}
	})
	<-ctx.Done()
	m.queue.ShutDown()
	group.Wait()
}

// want takes a pod of the engine; only static ones matter here.
func (m *mirrors) want(pod *v1.Pod) {
	if !kubetypes.IsStaticPod(pod) {
		return
	}
	m.mu.Lock()
	old := m.wanted[nameOf(pod)]
	m.wanted[nameOf(pod)] = pod
	m.mu.Unlock()
	if old == nil || old.UID != pod.UID {
		m.queue.Add(nameOf(pod))
	}
}

// unwant takes note that a pod has ended and is gone.
func (m *mirrors) unwant(pod *v1.Pod) {
	m.mu.Lock()
	if w := m.wanted[nameOf(pod)]; w != nil && w.UID == pod.UID {
		delete(m.wanted, nameOf(pod))
	}
	m.mu.Unlock()
	if kubetypes.IsStaticPod(pod) {
		m.queue.Add(nameOf(pod))
	}
}

// loaded tells that all static pods are known.
func (m *mirrors) loaded() {
	m.mu.Lock()
	m.complete = true
	names := slices.Collect(maps.Keys(m.have))
	m.mu.Unlock()
	for _, name := range names {
		m.queue.Add(name)
	}
}

// seen and gone take the API's word on a mirror pod.
func (m *mirrors) seen(mirror *v1.Pod) {
	m.mu.Lock()
	m.have[nameOf(mirror)] = mirror
	static := m.wanted[nameOf(mirror)]
	m.mu.Unlock()
	if static != nil && shows(mirror, static) {
		m.agent.writer.mirrored(static.UID, mirror)
	}
	m.queue.Add(nameOf(mirror))
}

func (m *mirrors) gone(mirror *v1.Pod) {
	m.mu.Lock()
	if have := m.have[nameOf(mirror)]; have != nil && have.UID == mirror.UID {
		delete(m.have, nameOf(mirror))
	}
	m.mu.Unlock()
	m.queue.Add(nameOf(mirror))
}

// pods are the static pods that use the node's resources.
func (m *mirrors) pods() []*v1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*v1.Pod
	for _, pod := range m.wanted {
		if !podutil.IsPodPhaseTerminal(pod.Status.Phase) {
			list = append(list, pod)
		}
	}
	return list
}

// hash tells versions of a static pod apart.
func hash(static *v1.Pod) string { return static.Annotations[kubetypes.ConfigHashAnnotationKey] }

// shows tells whether mirror shows this version of static.
func shows(mirror, static *v1.Pod) bool {
	return mirror.Annotations[kubetypes.ConfigMirrorAnnotationKey] == hash(static)
}

// reconcile makes one name's mirror be as it should.
func (m *mirrors) reconcile(ctx context.Context, name types.NamespacedName) error {
	m.mu.Lock()
	static, mirror, complete := m.wanted[name], m.have[name], m.complete
	m.mu.Unlock()
	if mirror != nil && (static == nil && complete && !m.expected(name) || mirror.DeletionTimestamp != nil || static != nil && !shows(mirror, static)) {
		if err := m.remove(ctx, mirror); err != nil {
			return err
		}
		mirror = nil
	}
	switch {
	case static == nil:
		return nil
	case mirror != nil:
		m.agent.writer.mirrored(static.UID, mirror)
		return nil
	case static.DeletionTimestamp != nil:
		return nil // its end needs no new mirror
	}
	return m.create(ctx, static)
}

// expected tells whether the engine has such a static pod: what it reports of it
// may be on its way.
func (m *mirrors) expected(name types.NamespacedName) bool {
	return slices.ContainsFunc(m.agent.cfg.Engine.Pods(), func(pod *v1.Pod) bool {
		return kubetypes.IsStaticPod(pod) && nameOf(pod) == name
	})
}

// remove deletes a mirror at once: there is nothing to wait for.
func (m *mirrors) remove(ctx context.Context, mirror *v1.Pod) error {
	err := m.agent.cfg.Client.CoreV1().Pods(mirror.Namespace).Delete(ctx, mirror.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(mirror.UID)),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting the mirror pod: %w", err)
	}
	m.mu.Lock()
	if have := m.have[nameOf(mirror)]; have != nil && have.UID == mirror.UID {
		delete(m.have, nameOf(mirror))
	}
	m.mu.Unlock()
	return nil
}

func (m *mirrors) create(ctx context.Context, static *v1.Pod) error {
	node := m.agent.cfg.Node.Node()
	if node == nil || node.UID == "" {
		return fmt.Errorf("creating the mirror pod: node %s has no UID yet", m.agent.cfg.NodeName)
	}
	mirror := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: static.Namespace, Name: static.Name, Labels: static.Labels, Annotations: maps.Clone(static.Annotations),
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: ptr.To(true),
			}},
		},
		Spec: *static.Spec.DeepCopy(),
	}
	mirror.Annotations[kubetypes.ConfigMirrorAnnotationKey] = hash(static)
	mirror.Spec.NodeName = m.agent.cfg.NodeName
	created, err := m.agent.cfg.Client.CoreV1().Pods(static.Namespace).Create(ctx, mirror, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating the mirror pod: %w", err)
	}
	m.agent.writer.mirrored(static.UID, created)
	return nil
}
