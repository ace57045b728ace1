package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/fault"
)

// StopPodSandbox implements cri.Runtime: it ends every container of the pod
// by force, then pause, and gives the network back. It is idempotent.
func (r *Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (_ *runtimeapi.StopPodSandboxResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if s.gone {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err := r.stopSandbox(ctx, s); err != nil {
		return nil, fmt.Errorf("failed to stop sandbox %q: %w", s.id, err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r *Runtime) stopSandbox(ctx context.Context, s *sandbox) error {
	s.mu.Lock()
	conn, stopped := s.conn, !s.rec.StoppedAt.IsZero()
	s.stops = true
	s.mu.Unlock()
	if stopped {
		return nil
	}
	if conn != nil && !s.isEnded() {
		if err := conn.Terminate(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("ending the pod's pause process: %w", err)
		}
		select {
		case <-s.ended:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the pod's processes to end: %w", ctx.Err())
		}
	}
	fault.Point("stop.ended")
	if !s.hostNetwork() {
		if err := r.cfg.Network.Teardown(ctx, s.id); err != nil {
			return fmt.Errorf("failed to teardown network: %w", err)
		}
	}
	fault.Point("stop.network")
	if err := s.update(func(rec *SandboxRecord) { rec.StoppedAt = time.Now() }); err != nil {
		return err
	}
	m := s.config.Metadata
	r.log.Info("sandbox stopped", "pod", m.Namespace+"/"+m.Name, "uid", m.Uid, "sandbox", s.id)
	r.emit(s.id, s, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// RemovePodSandbox implements cri.Runtime: it stops the sandbox if need be
// and removes it with its containers. It is idempotent.
func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (_ *runtimeapi.RemovePodSandboxResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if s.gone { // its name may be another's by now
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err := r.stopSandbox(ctx, s); err != nil {
		return nil, fmt.Errorf("failed to stop sandbox %q: %w", s.id, err)
	}
	fault.Point("stop.recorded")
	for _, c := range r.containersOf(s.id) {
		if err := r.removeContainer(ctx, c); err != nil {
			return nil, fmt.Errorf("failed to remove container %q: %w", c.id, err)
		}
	}
	if err := s.group.Remove(); err != nil {
		return nil, err
	}
	fault.Point("remove.podcgroup")
	// The record goes last: a node killed before this line finds it and
	// removes the rest again.
	if err := os.RemoveAll(s.dir); err != nil {
		return nil, fmt.Errorf("removing the sandbox's directory: %w", err)
	}
	s.gone = true
	r.mu.Lock()
	delete(r.sandboxes, s.id)
	delete(r.names, s.name)
	r.mu.Unlock()
	r.emit(s.id, s, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus implements cri.Runtime.
func (r *Runtime) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (_ *runtimeapi.PodSandboxStatusResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: s.status(), Timestamp: time.Now().UnixNano()}
	for _, c := range r.containersOf(s.id) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, c.status())
	}
	if req.Verbose {
		s.mu.Lock()
		resp.Info, err = verbose(s.rec)
		s.mu.Unlock()
	}
	return resp, err
}

// ListPodSandbox implements cri.Runtime; the newest come first.
func (r *Runtime) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (_ *runtimeapi.ListPodSandboxResponse, err error) {
	defer toGRPC(&err)
	f := req.GetFilter()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range r.allSandboxes() {
		item := s.listed()
		if hasPrefix(item.Id, f.GetId()) && (f.GetState() == nil || f.State.State == item.State) && hasLabels(item.Labels, f.GetLabelSelector()) {
			resp.Items = append(resp.Items, item)
		}
	}
	newestFirst(resp.Items)
	return resp, nil
}

// UpdatePodSandboxResources implements cri.Runtime.
func (r *Runtime) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (_ *runtimeapi.UpdatePodSandboxResourcesResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if _, err := s.live(); err != nil {
		return nil, err
	}
	if err := s.group.Update(s.resources(req.Resources, req.Overhead)); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
