package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/lifecycle"
	"unipod.dev/unipod/internal/podspec"
)

// sight is a worker's picture of its pod in the runtime. What can't change any
// more is remembered, so that a look costs two lists and a question per change.
type sight struct {
	sandboxes  map[string]lifecycle.Sandbox   // ready ones
	containers map[string]lifecycle.Container // running and exited ones
	view       lifecycle.View
}

func newSight() sight {
	return sight{sandboxes: map[string]lifecycle.Sandbox{}, containers: map[string]lifecycle.Container{}}
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// look asks the runtime about the pod.
func (w *worker) look(ctx context.Context, pod *v1.Pod) (lifecycle.View, error) {
	selector := map[string]string{podspec.LabelPodUID: string(w.uid)}
	containers, err := w.e.cfg.CRI.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return lifecycle.View{}, fmt.Errorf("listing containers: %w", err)
	}
	view := lifecycle.View{Runtime: w.e.runtime.name}
	known := newSight()
	for _, item := range containers.Containers {
		c, err := w.container(ctx, item)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return lifecycle.View{}, err
		}
		if c.State == lifecycle.Running || c.State == lifecycle.Exited {
			known.containers[c.ID] = c
		}
		view.Containers = append(view.Containers, c)
	}
	// Sandboxes come last: who sees a container that ended with its sandbox must
	// see that, too, or it would be started in what is gone.
	sandboxes, err := w.e.cfg.CRI.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return lifecycle.View{}, fmt.Errorf("listing sandboxes: %w", err)
	}
	for _, item := range sandboxes.Items {
		sb, err := w.sandbox(ctx, item)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return lifecycle.View{}, err
		}
		if sb.Ready {
			known.sandboxes[sb.ID] = sb
		}
		view.Sandboxes = append(view.Sandboxes, sb)
	}
	slices.SortFunc(view.Sandboxes, func(a, b lifecycle.Sandbox) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.Attempt, a.Attempt))
	})
	slices.SortFunc(view.Containers, func(a, b lifecycle.Container) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.RestartCount, a.RestartCount), cmp.Compare(a.ID, b.ID))
	})
	specs := map[string]*v1.Container{}
	for c := range allContainers(pod) {
		specs[c.Name] = c
	}
	for i := range view.Containers {
		c := &view.Containers[i]
		if spec := specs[c.Name]; spec != nil {
			c.Changed = c.Hash != podspec.Hash(spec)
		}
	}
	known.view = view
	w.seen = known
	return view, nil
}

func (w *worker) sandbox(ctx context.Context, item *runtimeapi.PodSandbox) (lifecycle.Sandbox, error) {
	ready := item.State == runtimeapi.PodSandboxState_SANDBOX_READY
	if sb, ok := w.seen.sandboxes[item.Id]; ok {
		sb.Ready = ready
		return sb, nil
	}
	sb := lifecycle.Sandbox{ID: item.Id, Attempt: item.GetMetadata().GetAttempt(), Ready: ready, CreatedAt: time.Unix(0, item.CreatedAt)}
	if !ready {
		return sb, nil
	}
	resp, err := w.e.cfg.CRI.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: item.Id})
	if err != nil {
		return sb, fmt.Errorf("status of sandbox %s: %w", item.Id, err)
	}
	st := resp.GetStatus()
	sb.HostNetwork = st.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
	if ip := st.GetNetwork().GetIp(); ip != "" {
		sb.IPs = append(sb.IPs, ip)
	}
	for _, more := range st.GetNetwork().GetAdditionalIps() {
		sb.IPs = append(sb.IPs, more.Ip)
	}
	return sb, nil
}

func (w *worker) container(ctx context.Context, item *runtimeapi.Container) (lifecycle.Container, error) {
	state := containerState(item.State)
	if c, ok := w.seen.containers[item.Id]; ok && c.State == state {
		return c, nil
	}
	info, err := podspec.ParseContainer(item.Labels, item.Annotations)
	if err != nil {
		w.log.Warn("reading back a container's annotations", "container", info.Name, "err", err)
	}
	c := lifecycle.Container{
		ID: item.Id, Name: info.Name, SandboxID: item.PodSandboxId, State: state,
		CreatedAt: time.Unix(0, item.CreatedAt), RestartCount: int32(info.RestartCount), Hash: info.Hash,
		Image: item.GetImage().GetImage(), ImageRef: item.ImageRef,
	}
	resp, err := w.e.cfg.CRI.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: item.Id})
	if err != nil {
		return c, fmt.Errorf("status of container %s: %w", info.Name, err)
	}
	st := resp.GetStatus()
	// It may have moved on since it was listed.
	c.State = containerState(st.GetState())
	if image := st.GetImage().GetImage(); image != "" {
		c.Image = image
	}
	if st.GetImageRef() != "" {
		c.ImageRef = st.ImageRef
	}
	c.User, c.StopSignal = containerUser(st.GetUser()), stopSignal(st.GetStopSignal())
	if c.State != lifecycle.Created {
		c.StartedAt = time.Unix(0, st.StartedAt)
	}
	if c.State == lifecycle.Exited {
		c.FinishedAt, c.ExitCode = time.Unix(0, st.FinishedAt), st.ExitCode
		c.Reason, c.Message = st.Reason, w.terminationMessage(st, info)
	}
	return c, nil
}

func containerState(s runtimeapi.ContainerState) lifecycle.ContainerState {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return lifecycle.Created
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return lifecycle.Running
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return lifecycle.Exited
	}
	return lifecycle.Unknown
}

func containerUser(u *runtimeapi.ContainerUser) *v1.ContainerUser {
	l := u.GetLinux()
	if l == nil {
		return nil
	}
	return &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: l.Uid, GID: l.Gid, SupplementalGroups: l.SupplementalGroups}}
}

// stopSignal turns the CRI's name of a signal into the API's: SIGNAL_SIGTERM
// into SIGTERM, SIGNAL_SIGRTMINPLUS1 into SIGRTMIN+1.
func stopSignal(s runtimeapi.Signal) *v1.Signal {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return nil
	}
	name := strings.NewReplacer("SIGNAL_", "", "PLUS", "+", "MINUS", "-").Replace(s.String())
	signal := v1.Signal(name)
	return &signal
}
