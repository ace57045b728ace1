package fakecri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What follows is not simulated: every call answers Unimplemented, as an old
// runtime does.

// Status implements cri.Service.
func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return nil, unimplemented("Status")
}

// RuntimeConfig implements cri.Service.
func (r *Runtime) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return nil, unimplemented("RuntimeConfig")
}

// UpdateRuntimeConfig implements cri.Service.
func (r *Runtime) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return nil, unimplemented("UpdateRuntimeConfig")
}

// UpdatePodSandboxResources implements cri.Service.
func (r *Runtime) UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return nil, unimplemented("UpdatePodSandboxResources")
}

// Exec implements cri.Service.
func (r *Runtime) Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return nil, unimplemented("Exec")
}

// Attach implements cri.Service.
func (r *Runtime) Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return nil, unimplemented("Attach")
}

// PortForward implements cri.Service.
func (r *Runtime) PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return nil, unimplemented("PortForward")
}

// ContainerStats implements cri.Service.
func (r *Runtime) ContainerStats(context.Context, *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return nil, unimplemented("ContainerStats")
}

// ListContainerStats implements cri.Service.
func (r *Runtime) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	if r.ContainerUsage == nil {
		return nil, unimplemented("ListContainerStats")
	}
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, st := range r.ContainerUsage() {
		if selects(req.GetFilter().GetLabelSelector(), st.Attributes.Labels) {
			resp.Stats = append(resp.Stats, st)
		}
	}
	return resp, nil
}

// PodSandboxStats implements cri.Service.
func (r *Runtime) PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return nil, unimplemented("PodSandboxStats")
}

// ListPodSandboxStats implements cri.Service.
func (r *Runtime) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	if r.PodStats == nil {
		return nil, unimplemented("ListPodSandboxStats")
	}
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, st := range r.PodStats() {
		if selects(req.GetFilter().GetLabelSelector(), st.Attributes.Labels) {
			resp.Stats = append(resp.Stats, st)
		}
	}
	return resp, nil
}

// ListMetricDescriptors implements cri.Service.
func (r *Runtime) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, unimplemented("ListMetricDescriptors")
}

// ListPodSandboxMetrics implements cri.Service.
func (r *Runtime) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, unimplemented("ListPodSandboxMetrics")
}

// ImageFsInfo implements cri.Service.
func (r *Runtime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	if r.FsInfo == nil {
		return nil, unimplemented("ImageFsInfo")
	}
	return r.FsInfo, nil
}
