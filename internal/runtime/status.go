package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/version"
)

// Version implements cri.Runtime.
func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API, not ours
		RuntimeName:       "unipod",
		RuntimeVersion:    version.Version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status implements cri.Runtime.
func (r *Runtime) Status(ctx context.Context, req *runtimeapi.StatusRequest) (_ *runtimeapi.StatusResponse, err error) {
	defer toGRPC(&err)
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := r.cfg.Network.Ready(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, network,
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Features: features}, {Name: Handler, Features: features}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if req.Verbose {
		b, err := json.Marshal(map[string]any{
			"root": r.cfg.Root, "run": r.cfg.Run,
			"cgroupDriver": r.cfg.Cgroups.Driver(), "cgroupVersion": r.cfg.Cgroups.Version(),
			"version": version.Version,
		})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"config": string(b)}
	}
	return resp, nil
}

// RuntimeConfig implements cri.Runtime: kubelet takes its cgroup driver from
// here.
func (r *Runtime) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if r.cfg.Cgroups.Driver() == cgroup.DriverSystemd {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig implements cri.Runtime: the pod CIDR it carries is the
// CNI configuration's business, as in containerd without a template.
func (r *Runtime) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		r.log.Info("kubelet announced a pod CIDR; the network's configuration decides", "podCIDR", cidr)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// ContainerStatus implements cri.Runtime.
func (r *Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (_ *runtimeapi.ContainerStatusResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: c.status()}
	if req.Verbose {
		rec := c.record()
		// The values of the environment may be secrets and this is printed.
		shown := proto.Clone(c.config).(*runtimeapi.ContainerConfig)
		for _, e := range shown.Envs {
			e.Value = []byte("(hidden)")
		}
		if rec.Config, err = marshalConfig(shown); err != nil {
			return nil, err
		}
		rec.ImageConfig.Env = nil
		resp.Info, err = verbose(rec)
	}
	return resp, err
}

// ListContainers implements cri.Runtime; the newest come first.
func (r *Runtime) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (_ *runtimeapi.ListContainersResponse, err error) {
	defer toGRPC(&err)
	f := req.GetFilter()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range r.allContainers() {
		item := c.listed()
		if strings.HasPrefix(item.Id, f.GetId()) && strings.HasPrefix(item.PodSandboxId, f.GetPodSandboxId()) &&
			(f.GetState() == nil || f.State.State == item.State) && hasLabels(item.Labels, f.GetLabelSelector()) {
			resp.Containers = append(resp.Containers, item)
		}
	}
	newestFirst(resp.Containers)
	return resp, nil
}

// ReopenContainerLog implements cri.Runtime.
func (r *Runtime) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (_ *runtimeapi.ReopenContainerLogResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	cio := c.io
	c.mu.Unlock()
	if cio == nil || c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %q is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if err := cio.log.Reopen(); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// UpdateContainerResources implements cri.Runtime.
func (r *Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (_ *runtimeapi.UpdateContainerResourcesResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	state := c.state()
	if c.gone || state == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, fmt.Errorf("container %q has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	res := mergeResources(c.rec.resources(), req.GetLinux())
	recorded, err := marshalConfig(res)
	if err != nil {
		return nil, err
	}
	if state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := c.group.Update(cgroup.FromCRI(req.GetLinux())); err != nil {
			return nil, fmt.Errorf("failed to update resources of container %q: %w", c.id, err)
		}
	}
	if err := c.update(func(rec *ContainerRecord) { rec.Resources = recorded }); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// mergeResources lays what is set in change over old.
func mergeResources(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if old == nil {
		old = &runtimeapi.LinuxContainerResources{}
	}
	if change == nil {
		return old
	}
	merged := proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	if len(change.HugepageLimits) > 0 {
		merged.HugepageLimits = nil // a list is replaced, not appended to
	}
	proto.Merge(merged, change)
	return merged
}
