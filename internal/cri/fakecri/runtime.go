package fakecri

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func clone[M proto.Message](m M) M { return proto.Clone(m).(M) }

// Version implements cri.Runtime.
func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

// RunPodSandbox implements cri.Runtime.
func (r *Runtime) RunPodSandbox(_ context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := req.Config.Metadata
	if h := req.RuntimeHandler; h != "" {
		r.called("RunPodSandbox %s/%d by %s", m.Name, m.Attempt, h)
	} else {
		r.called("RunPodSandbox %s/%d", m.Name, m.Attempt)
	}
	if r.Sandbox != nil {
		if err := r.Sandbox(m.Attempt); err != nil {
			return nil, err
		}
	}
	now := r.now()
	id := fmt.Sprintf("sandbox-%d", r.serial)
	options := req.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	st := &runtimeapi.PodSandboxStatus{
		Id: id, Metadata: m, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: now,
		Labels: req.Config.Labels, Annotations: req.Config.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: options}},
	}
	if options.GetNetwork() == runtimeapi.NamespaceMode_POD {
		st.Network = &runtimeapi.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.88.%d.%d", r.serial>>8&0xff, r.serial&0xff)}
	}
	r.sandboxes[id] = &sandbox{status: st, config: clone(req.Config)}
	r.event(id, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements cri.Runtime.
func (r *Runtime) StopPodSandbox(_ context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[req.PodSandboxId]
	if s == nil {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	r.called("StopPodSandbox %s/%d", s.status.Metadata.Name, s.status.Metadata.Attempt)
	for _, c := range r.containers {
		if c.sandbox == req.PodSandboxId {
			r.exit(c, 137, "")
		}
	}
	s.status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	r.event(req.PodSandboxId, req.PodSandboxId, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox implements cri.Runtime.
func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if _, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: req.PodSandboxId}); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, c := range r.containers {
		if c.sandbox == req.PodSandboxId {
			delete(r.containers, id)
		}
	}
	if s := r.sandboxes[req.PodSandboxId]; s != nil {
		r.called("RemovePodSandbox %s/%d", s.status.Metadata.Name, s.status.Metadata.Attempt)
		delete(r.sandboxes, req.PodSandboxId)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus implements cri.Runtime.
func (r *Runtime) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[req.PodSandboxId]
	if s == nil {
		return nil, notFound("sandbox", req.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: clone(s.status)}, nil
}

// ListPodSandbox implements cri.Runtime.
func (r *Runtime) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxResponse{}
	f := req.GetFilter()
	for id, s := range r.sandboxes {
		if f.GetId() != "" && f.GetId() != id || !selects(f.GetLabelSelector(), s.status.Labels) ||
			f.GetState() != nil && f.State.State != s.status.State {
			continue
		}
		resp.Items = append(resp.Items, clone(&runtimeapi.PodSandbox{
			Id: id, Metadata: s.status.Metadata, State: s.status.State, CreatedAt: s.status.CreatedAt,
			Labels: s.status.Labels, Annotations: s.status.Annotations,
		}))
	}
	return resp, nil
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// CreateContainer implements cri.Runtime.
func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := req.Config.Metadata
	r.called("CreateContainer %s/%d", m.Name, m.Attempt)
	s := r.sandboxes[req.PodSandboxId]
	if s == nil || s.status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, notFound("ready sandbox", req.PodSandboxId)
	}
	for _, c := range r.containers {
		if c.sandbox == req.PodSandboxId && c.status.Metadata.Name == m.Name && c.status.Metadata.Attempt == m.Attempt {
			return nil, status.Errorf(codes.AlreadyExists, "container %s/%d exists", m.Name, m.Attempt)
		}
	}
	run := r.script(s.status.Metadata.Uid, m.Name)
	if run.CreateError != nil {
		return nil, run.CreateError
	}
	now := r.now()
	id := fmt.Sprintf("%s-%d", m.Name, r.serial)
	r.containers[id] = &container{
		sandbox: req.PodSandboxId, run: run, exited: make(chan struct{}),
		status: &runtimeapi.ContainerStatus{
			Id: id, Metadata: m, State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: now,
			Image: &runtimeapi.ImageSpec{Image: req.Config.Image.UserSpecifiedImage}, ImageRef: req.Config.Image.Image,
			Labels: req.Config.Labels, Annotations: req.Config.Annotations, Mounts: req.Config.Mounts,
			LogPath: s.config.LogDirectory + "/" + req.Config.LogPath,
		},
	}
	r.event(req.PodSandboxId, id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// script takes the next run of a container. r.mu is held.
func (r *Runtime) script(uid, name string) Run {
	runs := r.Scripts[name]
	if len(runs) == 0 {
		return Run{}
	}
	key := uid + "/" + name
	n := r.runs[key]
	r.runs[key]++
	return runs[min(n, len(runs)-1)]
}

// StartContainer implements cri.Runtime.
func (r *Runtime) StartContainer(_ context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	r.called("StartContainer %s/%d", c.status.Metadata.Name, c.status.Metadata.Attempt)
	if c.run.StartError != nil {
		// As containerd does it: the container counts as exited.
		c.status.State, c.status.ExitCode, c.status.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, 128, "StartError"
		c.status.Message = c.run.StartError.Error()
		c.status.FinishedAt = r.now()
		close(c.exited)
		r.event(c.sandbox, req.ContainerId, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
		return nil, c.run.StartError
	}
	c.status.State, c.status.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, r.now()
	if c.run.ExitAfter > 0 {
		c.timer = r.clock.AfterFunc(c.run.ExitAfter, func() { r.end(c, c.run.Code, c.run.Reason) })
	}
	r.event(c.sandbox, req.ContainerId, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.StartContainerResponse{}, nil
}

func (r *Runtime) end(c *container, code int32, reason string) {
	// A fake clock runs its functions under its own lock.
	go func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.exit(c, code, reason)
	}()
}

// StopContainer implements cri.Runtime: it returns when the container has
// ended.
func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[req.ContainerId]
	if c == nil {
		r.mu.Unlock()
		return nil, notFound("container", req.ContainerId)
	}
	grace := time.Duration(req.Timeout) * time.Second
	r.called("StopContainer %s/%d %s", c.status.Metadata.Name, c.status.Metadata.Attempt, grace)
	if c.status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		r.mu.Unlock()
		return &runtimeapi.StopContainerResponse{}, nil
	}
	after, code := grace, int32(137)
	if !c.run.Deaf && c.run.OnStop <= grace && grace > 0 {
		after, code = c.run.OnStop, c.run.StopCode
		if code == 0 && c.run.ExitAfter == 0 {
			code = 143
		}
	}
	if after == 0 {
		r.exit(c, code, "")
		r.mu.Unlock()
		return &runtimeapi.StopContainerResponse{}, nil
	}
	timer := r.clock.AfterFunc(after, func() { r.end(c, code, "") })
	r.mu.Unlock()
	defer timer.Stop()
	select {
	case <-c.exited:
		return &runtimeapi.StopContainerResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// RemoveContainer implements cri.Runtime.
func (r *Runtime) RemoveContainer(_ context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[req.ContainerId]; c != nil {
		r.called("RemoveContainer %s/%d", c.status.Metadata.Name, c.status.Metadata.Attempt)
		r.exit(c, 137, "")
		delete(r.containers, req.ContainerId)
		r.event(c.sandbox, req.ContainerId, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers implements cri.Runtime.
func (r *Runtime) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	f := req.GetFilter()
	for id, c := range r.containers {
		s := c.status
		if f.GetId() != "" && f.GetId() != id || f.GetPodSandboxId() != "" && f.GetPodSandboxId() != c.sandbox ||
			!selects(f.GetLabelSelector(), s.Labels) || f.GetState() != nil && f.State.State != s.State {
			continue
		}
		resp.Containers = append(resp.Containers, clone(&runtimeapi.Container{
			Id: id, PodSandboxId: c.sandbox, Metadata: s.Metadata, Image: s.Image, ImageRef: s.ImageRef,
			State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations,
		}))
	}
	return resp, nil
}

// ContainerStatus implements cri.Runtime.
func (r *Runtime) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	return &runtimeapi.ContainerStatusResponse{Status: clone(c.status)}, nil
}

// UpdateContainerResources implements cri.Runtime.
func (r *Runtime) UpdateContainerResources(_ context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	r.called("UpdateContainerResources %s/%d", c.status.Metadata.Name, c.status.Metadata.Attempt)
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog implements cri.Runtime.
func (r *Runtime) ReopenContainerLog(_ context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[req.ContainerId] == nil {
		return nil, notFound("container", req.ContainerId)
	}
	r.called("ReopenContainerLog %s", req.ContainerId)
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ExecSync implements cri.Runtime.
func (r *Runtime) ExecSync(_ context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r.mu.Lock()
	c, exec := r.containers[req.ContainerId], r.OnExec
	running := c != nil && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	r.mu.Unlock()
	switch {
	case !running:
		return nil, notFound("running container", req.ContainerId)
	case exec == nil:
		return &runtimeapi.ExecSyncResponse{}, nil
	}
	output, code, err := exec(c.status.Metadata.Name, req.Cmd)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: []byte(output), ExitCode: code}, nil
}
