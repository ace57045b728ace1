package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/util/workqueue"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	statusutil "k8s.io/kubernetes/pkg/util/pod"
	"k8s.io/utils/ptr"
)

const (
	// writers is how many pods' statuses are written at the same time.
	writers = 4
	// A write that failed is tried again after retryFirst, then twice that,
	// until retryLast.
	retryFirst = 10 * time.Millisecond
	retryLast  = 10 * time.Second
)

// writer writes pods' statuses to the API: of each pod the latest, one write
// at a time, and deletes the pods that have ended.
type writer struct {
	agent *Agent
	queue workqueue.TypedRateLimitingInterface[types.UID]

	mu      sync.Mutex
	reports map[types.UID]*report
}

// report is what is to be written of a pod, by the UID the engine knows.
type report struct {
	namespace, name string
	static          bool
	status          *v1.PodStatus // nil: nothing is known yet
	finished        bool          // nothing of it is left on the machine
	// resize is why it hasn't got the resources it asks for, nil if it has.
	resize *v1.PodCondition
	// api is the newest version of the API's object that is known, of the
	// mirror if it is a static pod's. It may lag behind.
	api *v1.Pod
}

func newWriter(a *Agent) *writer {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](retryFirst, retryLast)
	return &writer{
		agent: a, reports: map[types.UID]*report{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(limiter, workqueue.TypedRateLimitingQueueConfig[types.UID]{Clock: a.cfg.Clock}),
	}
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for {
				uid, shutdown := w.queue.Get()
				if shutdown {
					return
				}
				if err := w.write(ctx, uid); err == nil {
					w.queue.Forget(uid)
				} else if ctx.Err() == nil {
					w.agent.log.Warn("writing a pod's status failed; it is tried again", "uid", string(uid), "err", err)
					w.queue.AddRateLimited(uid)
				}
				w.queue.Done(uid)
			}
		})
	}
	<-ctx.Done()
	w.queue.ShutDown()
	group.Wait()
}

func (w *writer) change(uid types.UID, f func(*report)) {
	w.mu.Lock()
	r := w.reports[uid]
	if r == nil {
		r = &report{}
		w.reports[uid] = r
	}
	f(r)
	w.mu.Unlock()
	w.queue.Add(uid)
}

// set takes a pod's new status.
func (w *writer) set(pod *v1.Pod) {
	w.change(pod.UID, func(r *report) {
		r.namespace, r.name, r.static = pod.Namespace, pod.Name, kubetypes.IsStaticPod(pod)
		r.status = &pod.Status
	})
}

// reject takes the status of a pod that isn't let in.
func (w *writer) reject(pod *v1.Pod, reason, message string) {
	status := v1.PodStatus{
		QOSClass: v1qos.GetPodQOS(pod), Phase: v1.PodFailed, Reason: reason, Message: "Pod was rejected: " + message,
		StartTime: ptr.To(metav1.NewTime(w.agent.cfg.Clock.Now())), ObservedGeneration: pod.Generation,
	}
	if _, scheduled := podutil.GetPodCondition(&pod.Status, v1.PodScheduled); scheduled != nil {
		status.Conditions = append(status.Conditions, *scheduled)
	}
	w.change(pod.UID, func(r *report) {
		r.namespace, r.name, r.status, r.api = pod.Namespace, pod.Name, &status, pod
	})
}

// seen takes a version of the API's object, for later comparison.
func (w *writer) seen(pod *v1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.reports[pod.UID]
	if r == nil {
		r = &report{namespace: pod.Namespace, name: pod.Name}
		w.reports[pod.UID] = r
	}
	r.api = newer(r.api, pod)
}

// mirrored has the status of a static pod written to its mirror, which is new.
func (w *writer) mirrored(static types.UID, mirror *v1.Pod) {
	w.mu.Lock()
	r := w.reports[static]
	if r != nil {
		if r.api != nil && r.api.UID != mirror.UID {
			r.api = nil
		}
		r.api = newer(r.api, mirror)
	}
	w.mu.Unlock()
	if r != nil {
		w.queue.Add(static)
	}
}

// pending takes the condition of a resize that waits, nil if there is none. It
// tells whether that says something new.
func (w *writer) pending(uid types.UID, c *v1.PodCondition) (news bool) {
	w.mu.Lock()
	r := w.reports[uid]
	if r == nil {
		r = &report{}
		w.reports[uid] = r
	}
	old := r.resize
	switch {
	case old == nil || c == nil:
		news = old != c
	default:
		news = old.ObservedGeneration != c.ObservedGeneration
		if old.Message == c.Message && !news {
			c = old
		} else {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	changed := old != c
	r.resize = c
	w.mu.Unlock()
	if changed {
		w.queue.Add(uid)
	}
	return news
}

// finish takes note that nothing is left of a pod on this machine.
func (w *writer) finish(uid types.UID) {
	w.change(uid, func(r *report) { r.finished = true })
}

// forget drops a pod that the API has no more.
func (w *writer) forget(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.reports, uid)
}

// phase is a pod's phase as the node knows it.
func (w *writer) phase(pod *v1.Pod) v1.PodPhase {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.reports[pod.UID]; r != nil && r.status != nil {
		return r.status.Phase
	}
	return pod.Status.Phase
}

// newer is the later version of the same object.
func newer(a, b *v1.Pod) *v1.Pod {
	if a == nil || a.UID != b.UID {
		return b
	}
	if c, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion); err == nil && c > 0 {
		return a
	}
	return b
}

// write brings the API up to what is known of a pod.
func (w *writer) write(ctx context.Context, uid types.UID) error {
	w.mu.Lock()
	r := w.reports[uid]
	if r == nil {
		w.mu.Unlock()
		return nil
	}
	now := *r
	w.mu.Unlock()
	api := now.api
	if api == nil || now.name == "" {
		if now.static || now.finished {
			return w.settle(ctx, uid, now, nil)
		}
		return nil // seen or mirrored will tell
	}
	if now.status != nil {
		old := api.Status
		if now.static && podutil.IsPodPhaseTerminal(old.Phase) && !podutil.IsPodPhaseTerminal(now.status.Phase) {
			old = anew(old)
		}
		status := merge(old, *now.status)
		if now.resize != nil && !podutil.IsPodPhaseTerminal(status.Phase) {
			status.Conditions = append(status.Conditions, *now.resize)
		}
		if !equality.Semantic.DeepEqual(api.Status, status) {
			updated, _, _, err := statusutil.PatchPodStatus(ctx, w.agent.cfg.Client, api.Namespace, api.Name, api.UID, api.Status, status)
			if err != nil {
				return w.reconsider(ctx, uid, api, err)
			}
			if updated != nil {
				api = updated
				w.learn(uid, api)
			}
		}
	}
	if now.finished {
		return w.settle(ctx, uid, now, api)
	}
	return nil
}

// learn keeps a version of the API's object that a call returned.
func (w *writer) learn(uid types.UID, api *v1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.reports[uid]; r != nil && r.api != nil && r.api.UID == api.UID {
		r.api = newer(r.api, api)
	}
}

// reconsider looks at what the API has after a write failed: a pod that is
// gone, or another's by now, needs none; otherwise the next write starts from
// there.
func (w *writer) reconsider(ctx context.Context, uid types.UID, api *v1.Pod, failed error) error {
	fresh, err := w.agent.cfg.Client.CoreV1().Pods(api.Namespace).Get(ctx, api.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && fresh.UID != api.UID:
		w.drop(uid, api)
		return nil
	case err != nil:
		return fmt.Errorf("%w, and reading it: %w", failed, err)
	}
	w.mu.Lock()
	if r := w.reports[uid]; r != nil && r.api != nil && r.api.UID == fresh.UID {
		r.api = fresh
	}
	w.mu.Unlock()
	return failed
}

// settle ends the report of a pod of which nothing is left here; the API's
// object goes if it was to be deleted and its end is written.
func (w *writer) settle(ctx context.Context, uid types.UID, r report, api *v1.Pod) error {
	switch {
	case !r.finished:
		return nil // a static pod without a mirror, as yet
	case r.static, api == nil:
		w.forget(uid) // the mirror is for mirrors to delete
		return nil
	case api.DeletionTimestamp == nil:
		return nil // gone has been asked for, or will be
	case !podutil.IsPodPhaseTerminal(api.Status.Phase):
		return errors.New("it has ended, but its status doesn't say so yet")
	}
	err := w.agent.cfg.Client.CoreV1().Pods(api.Namespace).Delete(ctx, api.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(api.UID)),
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting pod %s/%s: %w", api.Namespace, api.Name, err)
	}
	w.agent.log.Info("pod deleted", "pod", api.Namespace+"/"+api.Name, "uid", string(uid))
	w.forget(uid)
	return nil
}

// drop forgets the API's object of a pod; a static pod waits for the next.
func (w *writer) drop(uid types.UID, api *v1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.reports[uid]
	switch {
	case r == nil || r.api == nil || r.api.UID != api.UID:
	case r.static && !r.finished:
		r.api = nil
	default:
		delete(w.reports, uid)
	}
}
