package podspec

import (
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	"k8s.io/kubernetes/pkg/kubelet/qos"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
)

// The kernel's bounds of cpu.shares and the shortest quota it accepts.
const (
	minShares     = 2
	maxShares     = 262144
	sharesPerCPU  = 1024
	minQuota      = int64(time.Millisecond / time.Microsecond)
	defaultPeriod = 100 * time.Millisecond
)

// cpuShares is the weight of a CPU request in cgroup v1's unit.
func cpuShares(milliCPU int64) int64 {
	return min(max(milliCPU*sharesPerCPU/1000, minShares), maxShares)
}

// cpuQuota is the CPU time, in µs, that a limit grants per period (µs); 0 is
// no limit.
func cpuQuota(milliCPU, period int64) int64 {
	if milliCPU == 0 {
		return 0
	}
	return max(milliCPU*period/1000, minQuota)
}

// cpuAndMemory is the part of the resources that sandboxes and containers have
// in common.
func (n *Node) cpuAndMemory(cpuRequest, cpuLimit, memoryLimit *resource.Quantity) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          cpuShares(cpuRequest.MilliValue()),
		MemoryLimitInBytes: memoryLimit.Value(),
	}
	if !n.NoCPUQuota {
		period := n.CPUQuotaPeriod
		if period == 0 {
			period = defaultPeriod
		}
		r.CpuPeriod = period.Microseconds()
		r.CpuQuota = cpuQuota(cpuLimit.MilliValue(), r.CpuPeriod)
	}
	if n.CgroupV2 && n.GroupOOMKill {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

// ContainerResources are the resources of one container, as CreateContainer
// and UpdateContainerResources take them.
func ContainerResources(node *Node, pod *v1.Pod, c *v1.Container) *runtimeapi.LinuxContainerResources {
	limits := effectiveLimits(pod, c)
	cpuLimit, memoryLimit := limits.Cpu(), limits.Memory()
	// Without a request the limit is the request, as the API server has it.
	cpuRequest := cpuLimit
	if r, ok := c.Resources.Requests[v1.ResourceCPU]; ok {
		cpuRequest = &r
	}
	r := node.cpuAndMemory(cpuRequest, cpuLimit, memoryLimit)
	if node.MemoryCapacity > 0 {
		r.OomScoreAdj = int64(qos.GetContainerOOMScoreAdjust(pod, c, node.MemoryCapacity))
	}
	r.HugepageLimits = node.hugePageLimits(pod, c)
	node.limitSwap(r, pod, c)
	return r
}

// effectiveLimits are the container's limits; where it has none for CPU or
// memory, the pod's own (KEP-2837).
func effectiveLimits(pod *v1.Pod, c *v1.Container) v1.ResourceList {
	limits := c.Resources.Limits.DeepCopy()
	if !resourcehelper.IsPodLevelResourcesSet(pod) {
		return limits
	}
	if limits == nil {
		limits = v1.ResourceList{}
	}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		if q := limits[name]; !q.IsZero() {
			continue
		}
		if q, ok := pod.Spec.Resources.Limits[name]; ok {
			limits[name] = q
		}
	}
	return limits
}

// hugePageLimits limits every page size the kernel has: what isn't asked for
// is forbidden.
func (n *Node) hugePageLimits(pod *v1.Pod, c *v1.Container) []*runtimeapi.HugepageLimit {
	wanted := map[string]uint64{}
	want := func(list v1.ResourceList) {
		for name, amount := range list {
			if !v1helper.IsHugePageResourceName(name) {
				continue
			}
			size, err := v1helper.HugePageSizeFromResourceName(name)
			if err != nil {
				continue // validation lets no such name pass
			}
			if unit, err := v1helper.HugePageUnitSizeFromByteSize(size.Value()); err == nil {
				wanted[unit] = uint64(amount.Value())
			}
		}
	}
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		want(pod.Spec.Resources.Limits)
	}
	want(c.Resources.Limits)
	var out []*runtimeapi.HugepageLimit
	for _, size := range slices.Sorted(slices.Values(n.HugePageSizes)) {
		out = append(out, &runtimeapi.HugepageLimit{PageSize: size, Limit: wanted[size]})
	}
	return out
}

// limitSwap forbids swap, or grants a burstable container its share of it
// (KEP-2400).
func (n *Node) limitSwap(r *runtimeapi.LinuxContainerResources, pod *v1.Pod, c *v1.Container) {
	switch {
	case !n.SwapController:
	case !n.CgroupV2:
		// v1 limits memory and swap together. Without a memory limit this is 0
		// and means nothing, as in kubelet.
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	default:
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		r.Unified["memory.swap.max"] = strconv.FormatInt(n.swapShare(pod, c), 10)
	}
}

func (n *Node) swapShare(pod *v1.Pod, c *v1.Container) int64 {
	request, limit := c.Resources.Requests.Memory(), c.Resources.Limits.Memory()
	if !n.LimitedSwap || kubetypes.IsCriticalPod(pod) || v1qos.GetPodQOS(pod) != v1.PodQOSBurstable ||
		request.IsZero() && limit.IsZero() || request.Cmp(*limit) == 0 ||
		n.MemoryCapacity <= 0 || request.Value() > n.MemoryCapacity {
		return 0
	}
	return int64(float64(request.Value()) / float64(n.MemoryCapacity) * float64(n.SwapCapacity))
}
