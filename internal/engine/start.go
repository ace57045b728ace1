package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"unipod.dev/unipod/internal/lifecycle"
	"unipod.dev/unipod/internal/podspec"
	"unipod.dev/unipod/internal/volume"
)

func allContainers(pod *v1.Pod) iter.Seq[*v1.Container] {
	return func(yield func(*v1.Container) bool) {
		for c := range podutil.ContainerIter(&pod.Spec, podutil.AllContainers) {
			if !yield(c) {
				return
			}
		}
	}
}

// findContainer finds a container's spec. The machine only names containers of
// the pod it was given.
func findContainer(pod *v1.Pod, name string) *v1.Container {
	for c := range allContainers(pod) {
		if c.Name == name {
			return c
		}
	}
	return &v1.Container{Name: name}
}

// start brings one container up: image, configuration, creation, start,
// postStart hook.
func (w *worker) start(ctx context.Context, pod *v1.Pod, a lifecycle.Action) *lifecycle.Failure {
	c := findContainer(pod, a.Container)
	failed := func(reason string, err error) *lifecycle.Failure {
		message := plain(err)
		if ctx.Err() == nil {
			w.log.Warn("starting a container failed", "container", c.Name, "reason", reason, "err", message)
			w.record(v1.EventTypeWarning, "Failed", c.Name, "Error: "+message)
		}
		return &lifecycle.Failure{Reason: reason, Message: message}
	}
	view := w.viewFor(a)
	sandbox, err := w.sandboxConfig(pod, view.attempt, false)
	if err != nil {
		return failed(lifecycle.ReasonCreateConfigError, err)
	}
	if a.Attempt > 0 {
		w.fitSandbox(ctx, pod, a, sandbox)
	}
	image, failure := w.e.images.ensure(ctx, w, pod, c.Image, c.Name, c.ImagePullPolicy, sandbox)
	if failure != nil {
		if ctx.Err() == nil {
			w.record(v1.EventTypeWarning, "Failed", c.Name, "Error: "+failure.Reason)
		}
		return failure
	}
	config, failure := w.containerConfig(ctx, pod, c, a, view, image, sandbox)
	if failure != nil {
		if ctx.Err() == nil {
			w.record(v1.EventTypeWarning, "Failed", c.Name, "Error: "+failure.Message)
		}
		return failure
	}
	id, failure := w.launch(ctx, a, config, sandbox, failed)
	if failure != nil {
		return failure
	}
	w.record(v1.EventTypeNormal, "Started", c.Name, "Container started")
	w.log.Info("container started", "container", c.Name, "id", id, "restarts", config.Metadata.Attempt)
	return w.postStart(ctx, pod, c, id)
}

// launch creates a container and starts it.
func (w *worker) launch(ctx context.Context, a lifecycle.Action, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig,
	failed func(reason string, err error) *lifecycle.Failure,
) (id string, failure *lifecycle.Failure) {
	done, err := w.e.turn(ctx)
	if err != nil {
		return "", failed(lifecycle.ReasonCreateError, err)
	}
	defer done()
	created, err := w.e.cfg.CRI.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: a.SandboxID, Config: config, SandboxConfig: sandbox,
	})
	if err != nil {
		return "", failed(lifecycle.ReasonCreateError, err)
	}
	id = created.ContainerId
	w.record(v1.EventTypeNormal, "Created", a.Container, "Container created")
	if _, err := w.e.cfg.CRI.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return "", failed(lifecycle.ReasonRunError, errors.New(strings.ReplaceAll(plain(err), id, a.Container)))
	}
	return id, nil
}

// plain is an error's text without the wrapping gRPC gives it.
func plain(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// postStart runs the hook; a container whose hook fails is ended, within its
// grace, preStop hook included.
func (w *worker) postStart(ctx context.Context, pod *v1.Pod, c *v1.Container, id string) *lifecycle.Failure {
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	err := w.e.prober.Hook(ctx, c.Lifecycle.PostStart, describe(pod), w.target(c, id), w.e.clock)
	if err == nil {
		return nil
	}
	failure := &lifecycle.Failure{Reason: lifecycle.ReasonPostStartHookError, Message: err.Error(), Kill: id}
	if ctx.Err() == nil {
		w.record(v1.EventTypeWarning, "FailedPostStartHook", c.Name, "PostStartHook failed")
	}
	return failure
}

// sandboxView is what a start needs of the sandbox it goes into.
type sandboxView struct {
	attempt uint32
	ips     []string
	target  map[string]string // IDs of running containers by name
}

func (w *worker) viewFor(a lifecycle.Action) sandboxView {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.picture[a.SandboxID]
}

func (w *worker) containerConfig(ctx context.Context, pod *v1.Pod, c *v1.Container, a lifecycle.Action, view sandboxView, image *runtimeapi.Image, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.ContainerConfig, *lifecycle.Failure) {
	wrong := func(err error) (*runtimeapi.ContainerConfig, *lifecycle.Failure) {
		return nil, &lifecycle.Failure{Reason: lifecycle.ReasonCreateConfigError, Message: plain(err)}
	}
	node := &w.e.cfg.Node
	logs := filepath.Join(podspec.LogDirectory(w.e.cfg.LogDir, pod), c.Name)
	restarts := int(a.Attempt)
	if restarts == 0 {
		// The runtime has forgotten earlier runs, if there were any; their
		// logs tell.
		restarts = runsLogged(logs)
	}
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return wrong(fmt.Errorf("create container log directory for container %s failed: %w", c.Name, err))
	}
	ips := podspec.SortPodIPs(node, view.ips)
	env, err := podspec.Environment(node, pod, c, podspec.EnvOptions{
		Objects: w.objects(), PodIPs: ips, Services: w.e.services(pod.Namespace), EnvFile: w.envFile,
	})
	if err != nil {
		return wrong(err)
	}
	images, failure := w.imageVolumes(ctx, pod, c, sandbox)
	if failure != nil {
		return nil, failure
	}
	mounts, err := w.mounts(ctx, pod, c, env, ips, images)
	if err != nil {
		return wrong(err)
	}
	users, err := w.userNamespace(pod)
	if err != nil {
		return wrong(err)
	}
	o := podspec.ContainerOptions{
		RestartCount: restarts, Image: image, ImageRef: image.Id, Env: env, Mounts: mounts, UserNS: users,
	}
	for i := range pod.Spec.EphemeralContainers {
		if ec := &pod.Spec.EphemeralContainers[i]; ec.Name == c.Name && ec.TargetContainerName != "" {
			if o.TargetContainerID = view.target[ec.TargetContainerName]; o.TargetContainerID == "" {
				return wrong(fmt.Errorf("unable to find target container %v", ec.TargetContainerName))
			}
		}
	}
	config, err := podspec.ContainerConfig(node, pod, c, o)
	if err != nil {
		return wrong(err)
	}
	return config, nil
}

// imageVolumes pulls the images of the volumes a container mounts.
func (w *worker) imageVolumes(ctx context.Context, pod *v1.Pod, c *v1.Container, sandbox *runtimeapi.PodSandboxConfig) (map[string]*runtimeapi.ImageSpec, *lifecycle.Failure) {
	images := map[string]*runtimeapi.ImageSpec{}
	for _, m := range c.VolumeMounts {
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if v.Name != m.Name || v.Image == nil {
				continue
			}
			image, failure := w.e.images.ensure(ctx, w, pod, v.Image.Reference, c.Name, v.Image.PullPolicy, sandbox)
			if failure != nil {
				return nil, failure
			}
			images[v.Name] = &runtimeapi.ImageSpec{Image: image.Id, UserSpecifiedImage: v.Image.Reference}
		}
	}
	return images, nil
}

func (w *worker) mounts(ctx context.Context, pod *v1.Pod, c *v1.Container, env []podspec.EnvVar, ips []string, images map[string]*runtimeapi.ImageSpec) ([]*runtimeapi.Mount, error) {
	o := volume.MountOptions{Env: map[string]string{}, PodIPs: ips, Images: images}
	for _, e := range env {
		o.Env[e.Name] = e.Value
	}
	var err error
	if o.Hostname, o.Domain, err = podspec.Hostname(pod, w.e.cfg.Node.ClusterDomain); err != nil {
		return nil, err
	}
	w.disk.Lock()
	defer w.disk.Unlock()
	o.Volumes = w.mounted
	// The last run's subPaths are resolved anew.
	if err := w.e.volumes.TeardownContainer(ctx, w.uid, c.Name); err != nil {
		return nil, err
	}
	mounts, err := w.e.volumes.Mounts(pod, c, o)
	var sub *volume.SubPathError
	if errors.As(err, &sub) {
		w.log.Warn("subPath refused", "container", c.Name, "err", sub.Err)
	}
	return mounts, err
}

// envFile finds a key in an environment file of one of the pod's volumes.
func (w *worker) envFile(name, path, key string) (string, bool, error) {
	w.disk.Lock()
	defer w.disk.Unlock()
	mounted, ok := w.mounted[name]
	if !ok {
		return "", false, fmt.Errorf("cannot find volume %q of an environment file", name)
	}
	return volume.EnvFile(mounted, path, key)
}

var logName = regexp.MustCompile(`^(\d+)\.log(\..*)?$`)

// runsLogged counts the runs of a container by its log files, so that a new
// one does not write into an old one's log.
func runsLogged(dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0 // there are none
	}
	runs := 0
	for _, e := range entries {
		if m := logName.FindStringSubmatch(e.Name()); m != nil && !e.IsDir() {
			if n, err := strconv.Atoi(m[1]); err == nil {
				runs = max(runs, n+1)
			}
		}
	}
	return runs
}
