package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/lifecycle"
	"unipod.dev/unipod/internal/podspec"
	"unipod.dev/unipod/internal/probe"
	"unipod.dev/unipod/internal/volume"
)

// perform sets one action going. Its result comes back as an event.
func (w *worker) perform(ctx context.Context, pod *v1.Pod, a lifecycle.Action) {
	w.log.Debug("action", "verb", string(a.Verb), "container", a.Container, "id", a.ID)
	switch a.Verb {
	case lifecycle.Start:
		ctx, cancel := context.WithCancel(ctx)
		w.starts[a.Container] = cancel
		w.begin(func() {
			defer cancel()
			w.post(lifecycle.Started{Container: a.Container, Failure: w.start(ctx, pod, a)})
		})
	case lifecycle.CancelStart:
		if cancel := w.starts[a.Container]; cancel != nil {
			cancel()
		}
	case lifecycle.Stop:
		if cancel := w.stops[a.ID]; cancel != nil {
			cancel()
		}
		once, cancel := context.WithCancel(ctx)
		w.stops[a.ID] = cancel
		w.begin(func() {
			defer cancel()
			err := w.stop(once, a)
			if once.Err() == nil || ctx.Err() != nil {
				w.post(lifecycle.Stopped{ID: a.ID, Err: err})
			}
		})
	default:
		w.begin(func() { w.post(w.result(ctx, pod, a)) })
	}
}

func (w *worker) begin(f func()) {
	w.ops.Add(1)
	go func() {
		defer w.ops.Done()
		f()
	}()
}

// result carries out an action that needs no cancelling and returns its event.
func (w *worker) result(ctx context.Context, pod *v1.Pod, a lifecycle.Action) lifecycle.Event {
	rt := w.e.cfg.CRI
	switch a.Verb {
	case lifecycle.PrepareVolumes:
		return lifecycle.VolumesPrepared{Err: w.prepareVolumes(ctx, pod)}
	case lifecycle.TearDownVolumes:
		return lifecycle.VolumesTornDown{Err: w.tearDownVolumes(ctx)}
	case lifecycle.CreateSandbox:
		return lifecycle.SandboxCreated{Err: w.createSandbox(ctx, pod, a.Attempt)}
	case lifecycle.StopSandbox:
		_, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: a.ID})
		return lifecycle.SandboxStopped{ID: a.ID, Err: w.failed("stopping the sandbox", err)}
	case lifecycle.RemoveSandbox:
		_, err := rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: a.ID})
		return lifecycle.SandboxRemoved{ID: a.ID, Err: w.failed("removing the sandbox", err)}
	case lifecycle.PreStop:
		w.preStop(ctx, pod, a)
		return lifecycle.PreStopped{ID: a.ID}
	case lifecycle.Remove:
		_, err := rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: a.ID})
		if err = w.failed("removing container "+a.Container, err); err == nil && !a.KeepLogs && !w.e.cfg.KeepLogs {
			w.removeLogs(pod, a)
		}
		return lifecycle.ContainerRemoved{ID: a.ID, Err: err}
	case lifecycle.Resize:
		return lifecycle.Resized{Container: a.Container, Resources: *a.Resources, Err: w.resize(ctx, pod, a)}
	}
	panic("engine: no such action: " + string(a.Verb)) // lifecycle and engine are one program
}

// failed logs an error of the runtime; what is gone needs no further doing.
func (w *worker) failed(doing string, err error) error {
	if err == nil || isNotFound(err) {
		return nil
	}
	if !errors.Is(err, context.Canceled) {
		w.log.Error(doing+" failed", "err", err)
	}
	return err
}

func (w *worker) prepareVolumes(ctx context.Context, pod *v1.Pod) error {
	w.disk.Lock()
	defer w.disk.Unlock()
	mounted, err := w.e.volumes.Setup(ctx, pod)
	if err != nil {
		w.reportVolumes(err)
		return err
	}
	w.mounted = mounted
	return nil
}

// reportVolumes puts every volume that failed on record.
func (w *worker) reportVolumes(err error) {
	var joined interface{ Unwrap() []error }
	var one *volume.SetupError
	switch {
	case errors.Is(err, context.Canceled):
	case errors.As(err, &joined):
		for _, e := range joined.Unwrap() {
			w.reportVolumes(e)
		}
	case errors.As(err, &one):
		w.record(v1.EventTypeWarning, one.Reason(), "", one.Error())
	default:
		w.record(v1.EventTypeWarning, "FailedMount", "", fmt.Sprintf("Unable to attach or mount volumes: %v", err))
	}
}

// refreshVolumes brings what volumes show of API objects and of the pod itself
// up to date. A failure leaves the old content, as kubelet does.
func (w *worker) refreshVolumes(ctx context.Context) {
	w.disk.Lock()
	defer w.disk.Unlock()
	if w.mounted == nil {
		return // not prepared yet, or torn down
	}
	mounted, err := w.e.volumes.Setup(ctx, w.snapshot())
	if err != nil {
		w.reportVolumes(err)
		return
	}
	w.mounted = mounted
}

func (w *worker) tearDownVolumes(ctx context.Context) error {
	w.disk.Lock()
	defer w.disk.Unlock()
	w.mounted = nil
	if err := w.e.users.release(w.uid); err != nil {
		return w.failed("releasing the user namespace", err)
	}
	return w.failed("tearing down the volumes", w.e.volumes.Teardown(ctx, w.uid))
}

func (w *worker) createSandbox(ctx context.Context, pod *v1.Pod, attempt uint32) error {
	err := w.runSandbox(ctx, pod, attempt)
	if err != nil && ctx.Err() == nil && w.desired().DeletionTimestamp == nil {
		w.log.Error("creating the sandbox failed", "err", err)
		w.record(v1.EventTypeWarning, "FailedCreatePodSandBox", "", fmt.Sprintf("Failed to create pod sandbox: %v", err))
	}
	return err
}

func (w *worker) runSandbox(ctx context.Context, pod *v1.Pod, attempt uint32) error {
	config, err := w.sandboxConfig(pod, attempt, true)
	if err != nil {
		return err
	}
	handler, err := w.e.runtimeHandler(pod)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return fmt.Errorf("creating the log directory: %w", err)
	}
	done, err := w.e.turn(ctx)
	if err != nil {
		return err
	}
	resp, err := w.e.cfg.CRI.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	done()
	if err != nil {
		return err
	}
	w.log.Info("sandbox created", "sandbox", resp.PodSandboxId, "attempt", attempt)
	w.noteLimits(resp.PodSandboxId, config.GetLinux().GetResources())
	return nil
}

// turn waits until the runtime may be asked to make something more. What a
// machine makes is the kernel's work, whose locks are few: a thousand pods at
// once take as many threads and their memory, and longer.
func (e *Engine) turn(ctx context.Context) (done func(), err error) {
	select {
	case e.making <- struct{}{}:
		return func() { <-e.making }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// noteLimits remembers what a sandbox was given.
func (w *worker) noteLimits(id string, r *runtimeapi.LinuxContainerResources) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limits = map[string]*runtimeapi.LinuxContainerResources{id: r}
}

// fitSandbox gives a sandbox the resources of the pod as it is now, when it
// has others: a container that a resize restarts must fit in. A failure is the
// container's to tell, if it makes a difference.
func (w *worker) fitSandbox(ctx context.Context, pod *v1.Pod, a lifecycle.Action, config *runtimeapi.PodSandboxConfig) {
	w.mu.Lock()
	same := proto.Equal(w.limits[a.SandboxID], config.GetLinux().GetResources())
	w.mu.Unlock()
	if same {
		return
	}
	_ = w.resizeSandbox(ctx, pod, a) // logged
}

// runtimeHandler is the runtime's name for how the pod's RuntimeClass is run;
// pods without one are run as the runtime likes.
func (e *Engine) runtimeHandler(pod *v1.Pod) (string, error) {
	class := pod.Spec.RuntimeClassName
	switch {
	case class == nil || *class == "":
		return "", nil
	case e.cfg.RuntimeHandler == nil:
		return "", apierrors.NewNotFound(nodev1.Resource("runtimeclass"), *class)
	}
	handler, err := e.cfg.RuntimeHandler(*class)
	if err != nil && !apierrors.IsNotFound(err) {
		err = fmt.Errorf("failed to lookup RuntimeClass %s: %w", *class, err)
	}
	return handler, err
}

// sandboxConfig is the sandbox's configuration; it is the same at every call
// for the same pod and attempt, and goes with every container.
func (w *worker) sandboxConfig(pod *v1.Pod, attempt uint32, warn bool) (*runtimeapi.PodSandboxConfig, error) {
	users, err := w.userNamespace(pod)
	if err != nil {
		return nil, err
	}
	config, warnings, err := podspec.SandboxConfig(&w.e.cfg.Node, pod, podspec.SandboxOptions{
		Attempt: attempt, CgroupParent: w.e.cgroupParent(pod), UserNS: users,
	})
	if err != nil {
		return nil, err
	}
	w.origin.mark(config)
	if warn {
		for _, warning := range warnings {
			w.record(v1.EventTypeWarning, warning.Reason, "", warning.Message)
		}
	}
	return config, nil
}

func (w *worker) userNamespace(pod *v1.Pod) (*runtimeapi.UserNamespace, error) {
	if pod.Spec.HostUsers == nil || *pod.Spec.HostUsers {
		return nil, nil
	}
	if w.e.cfg.UserNamespace != nil {
		return w.e.cfg.UserNamespace(pod)
	}
	return w.e.users.get(pod.UID)
}

// stop ends a container.
func (w *worker) stop(ctx context.Context, a lifecycle.Action) error {
	_, err := w.e.cfg.CRI.StopContainer(ctx, &runtimeapi.StopContainerRequest{
		ContainerId: a.ID, Timeout: int64(a.Grace / time.Second),
	})
	return w.failed("stopping container "+a.Container, err)
}

// preStop runs a container's preStop hook within its grace. Whether it
// succeeds makes no difference but for the record, which does not say why: the
// hook's output may hold secrets.
func (w *worker) preStop(ctx context.Context, pod *v1.Pod, a lifecycle.Action) {
	c := findContainer(pod, a.Container)
	ctx, cancel := w.within(ctx, a.Grace)
	defer cancel()
	err := w.e.prober.Hook(ctx, c.Lifecycle.PreStop, describe(pod), w.target(c, a.ID), w.e.clock)
	if err != nil && ctx.Err() == nil {
		w.log.Warn("preStop hook failed", "container", c.Name, "err", err)
		w.record(v1.EventTypeWarning, "FailedPreStopHook", c.Name, "PreStopHook failed")
	}
}

// within is context.WithTimeout on the engine's clock.
func (w *worker) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	timer := w.e.clock.NewTimer(d)
	w.begin(func() {
		defer timer.Stop()
		select {
		case <-timer.C():
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}

func (w *worker) target(c *v1.Container, id string) probe.Target {
	return probe.Target{ContainerID: id, Container: c, PodIP: w.snapshot().Status.PodIP}
}

// resize gives a container the resources of its spec, and the pod's cgroup
// those of all its containers: first when they grow, last when they shrink, so
// that the container always fits in.
func (w *worker) resize(ctx context.Context, pod *v1.Pod, a lifecycle.Action) error {
	container := func() error {
		_, err := w.e.cfg.CRI.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: a.ID, Linux: podspec.ContainerResources(&w.e.cfg.Node, pod, findContainer(pod, a.Container)),
		})
		return w.failed("resizing container "+a.Container, err)
	}
	if a.Shrinks {
		if err := container(); err != nil {
			return err
		}
		return w.resizeSandbox(ctx, pod, a)
	}
	if err := w.resizeSandbox(ctx, pod, a); err != nil {
		return err
	}
	return container()
}

func (w *worker) resizeSandbox(ctx context.Context, pod *v1.Pod, a lifecycle.Action) error {
	config, err := w.sandboxConfig(pod, w.viewFor(a).attempt, false)
	if err != nil {
		return err
	}
	_, err = w.e.cfg.CRI.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: a.SandboxID, Resources: config.Linux.Resources, Overhead: config.Linux.Overhead,
	})
	if status.Code(err) == codes.Unimplemented {
		err = nil // an old runtime leaves the pod's cgroup to others
	}
	if err == nil {
		w.noteLimits(a.SandboxID, config.GetLinux().GetResources())
	}
	return w.failed("resizing the sandbox", err)
}

// removeLogs removes the log of one run of a container, rotated parts
// included.
func (w *worker) removeLogs(pod *v1.Pod, a lifecycle.Action) {
	log := filepath.Join(podspec.LogDirectory(w.e.cfg.LogDir, pod), podspec.LogPath(a.Container, int(a.Attempt)))
	parts, err := filepath.Glob(log + "*")
	if err != nil {
		w.log.Error("finding logs failed", "err", err)
	}
	for _, part := range parts {
		if err := os.Remove(part); err != nil && !os.IsNotExist(err) {
			w.log.Error("removing a log failed", "err", err)
		}
	}
}

// rest removes what the runtime does not know of a pod that is gone.
func (w *worker) rest(pod *v1.Pod) {
	if w.e.cfg.KeepLogs {
		return
	}
	if err := os.RemoveAll(podspec.LogDirectory(w.e.cfg.LogDir, pod)); err != nil {
		w.log.Error("removing the logs failed", "err", err)
	}
}

func describe(pod *v1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}
