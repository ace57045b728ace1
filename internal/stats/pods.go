package stats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/podspec"
)

// podStats are the pods the runtime has figures of, or one of them, in order
// of namespace and name.
func (p *Provider) podStats(ctx context.Context, only types.UID, disks bool) ([]statsapi.PodStats, error) {
	selector := map[string]string{}
	if only != "" {
		selector[podspec.LabelPodUID] = string(only)
	}
	var list []*runtimeapi.PodSandboxStats
	resp, err := p.cfg.CRI.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: selector}})
	if err == nil {
		list = resp.Stats
	} else {
		// Some runtimes know no figures of pods, and containerd 1.6 none of those
		// whose control group it has chosen itself.
		var cerr error
		if list, cerr = p.fromContainers(ctx, selector); cerr != nil {
			return nil, errors.Join(fmt.Errorf("asking the runtime for the figures of its pods: %w", err), cerr)
		}
	}
	pods := map[string]*v1.Pod{}
	for _, pod := range p.cfg.Pods() {
		pods[string(pod.UID)] = pod
	}
	var all []statsapi.PodStats
	for _, st := range list {
		m := st.GetAttributes().GetMetadata()
		if m == nil || st.GetAttributes().GetLabels()[podspec.LabelPodUID] == "" {
			continue // not a pod of Kubernetes
		}
		all = append(all, p.pod(ctx, st, pods[m.Uid], disks))
	}
	for uid := range p.volumes {
		if pods[uid] == nil {
			delete(p.volumes, uid)
		}
	}
	slices.SortFunc(all, func(a, b statsapi.PodStats) int {
		return cmp.Or(cmp.Compare(a.PodRef.Namespace, b.PodRef.Namespace), cmp.Compare(a.PodRef.Name, b.PodRef.Name), cmp.Compare(a.PodRef.UID, b.PodRef.UID))
	})
	return all, nil
}

// fromContainers makes figures of pods from those of their containers.
func (p *Provider) fromContainers(ctx context.Context, selector map[string]string) ([]*runtimeapi.PodSandboxStats, error) {
	sandboxes, err := p.cfg.CRI.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: selector, State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		return nil, fmt.Errorf("listing sandboxes: %w", err)
	}
	containers, err := p.cfg.CRI.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: selector}})
	if err != nil {
		return nil, fmt.Errorf("asking the runtime for the figures of its containers: %w", err)
	}
	byPod := map[string]*runtimeapi.PodSandboxStats{}
	var list []*runtimeapi.PodSandboxStats
	for _, sb := range sandboxes.Items {
		st := &runtimeapi.PodSandboxStats{
			Attributes: &runtimeapi.PodSandboxAttributes{Id: sb.Id, Metadata: sb.Metadata, Labels: sb.Labels},
			Linux:      &runtimeapi.LinuxPodSandboxStats{},
		}
		byPod[sb.GetMetadata().GetUid()] = st
		list = append(list, st)
	}
	for _, c := range containers.Stats {
		if st := byPod[c.GetAttributes().GetLabels()[podspec.LabelPodUID]]; st != nil {
			st.Linux.Containers = append(st.Linux.Containers, c)
		}
	}
	return list, nil
}

// pod translates one pod's figures. spec is nil when nobody knows it.
func (p *Provider) pod(ctx context.Context, st *runtimeapi.PodSandboxStats, spec *v1.Pod, disks bool) statsapi.PodStats {
	m, linux := st.Attributes.Metadata, st.GetLinux()
	out := statsapi.PodStats{
		PodRef:     statsapi.PodReference{Name: m.Name, Namespace: m.Namespace, UID: m.Uid},
		Containers: []statsapi.ContainerStats{},
		CPU:        p.cpu(st.Attributes.Id, linux.GetCpu()), Memory: memoryOf(linux.GetMemory()),
	}
	if spec != nil && spec.Status.StartTime != nil {
		out.StartTime = *spec.Status.StartTime
	}
	if disks {
		out.Network, out.IO = networkOf(linux.GetNetwork()), io(linux.GetIo())
		if n := optional(linux.GetProcess().GetProcessCount()); n != nil {
			out.ProcessStats = &statsapi.ProcessStats{ProcessCount: n}
		}
	}
	started := startTimes(spec)
	for _, c := range linux.GetContainers() {
		out.Containers = append(out.Containers, p.container(c, spec, started, disks))
	}
	addUp(&out, linux)
	if disks && spec != nil {
		p.storage(ctx, &out, spec)
	}
	return out
}

// addUp makes a pod's figures of its containers' where the runtime has none.
func addUp(out *statsapi.PodStats, linux *runtimeapi.LinuxPodSandboxStats) {
	cpu, memory := linux.GetCpu() == nil, linux.GetMemory() == nil
	for i := range out.Containers {
		c := &out.Containers[i]
		if cpu && c.CPU != nil {
			if out.CPU == nil {
				out.CPU = &statsapi.CPUStats{Time: c.CPU.Time}
			}
			sum(&out.CPU.UsageNanoCores, c.CPU.UsageNanoCores)
			sum(&out.CPU.UsageCoreNanoSeconds, c.CPU.UsageCoreNanoSeconds)
		}
		if memory && c.Memory != nil {
			if out.Memory == nil {
				out.Memory = &statsapi.MemoryStats{Time: c.Memory.Time}
			}
			sum(&out.Memory.UsageBytes, c.Memory.UsageBytes)
			sum(&out.Memory.WorkingSetBytes, c.Memory.WorkingSetBytes)
			sum(&out.Memory.RSSBytes, c.Memory.RSSBytes)
			sum(&out.Memory.PageFaults, c.Memory.PageFaults)
			sum(&out.Memory.MajorPageFaults, c.Memory.MajorPageFaults)
		}
		if c.Swap != nil {
			if out.Swap == nil {
				out.Swap = &statsapi.SwapStats{Time: c.Swap.Time}
			}
			sum(&out.Swap.SwapUsageBytes, c.Swap.SwapUsageBytes)
			sum(&out.Swap.SwapAvailableBytes, c.Swap.SwapAvailableBytes)
		}
	}
}

// startTimes are those of running containers, by name.
func startTimes(pod *v1.Pod) map[string]metav1.Time {
	started := map[string]metav1.Time{}
	if pod == nil {
		return started
	}
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if r := list[i].State.Running; r != nil {
				started[list[i].Name] = r.StartedAt
			}
		}
	}
	return started
}

func (p *Provider) container(c *runtimeapi.ContainerStats, spec *v1.Pod, started map[string]metav1.Time, disks bool) statsapi.ContainerStats {
	name := c.GetAttributes().GetMetadata().GetName()
	out := statsapi.ContainerStats{
		Name: name, StartTime: started[name], CPU: p.cpu(c.GetAttributes().GetId(), c.Cpu), Memory: memoryOf(c.Memory), Swap: swap(c.Swap),
	}
	if !disks {
		return out
	}
	out.IO = io(c.Io)
	if w := c.WritableLayer; w != nil {
		at := time.Unix(0, w.Timestamp)
		out.Rootfs = onFileSystem(w.GetFsId().GetMountpoint(), metav1.NewTime(at), statsapi.FsStats{})
		if out.Rootfs == nil {
			out.Rootfs = &statsapi.FsStats{Time: metav1.NewTime(at)}
		}
		out.Rootfs.UsedBytes, out.Rootfs.InodesUsed = optional(w.UsedBytes), optional(w.InodesUsed)
	}
	if spec != nil {
		now := metav1.NewTime(p.cfg.Clock.Now())
		bytes, inodes := filesIn(filepath.Join(podspec.LogDirectory(p.cfg.LogDir, spec), name))
		out.Logs = onFileSystem(p.cfg.LogDir, now, statsapi.FsStats{UsedBytes: &bytes, InodesUsed: &inodes})
	}
	return out
}

// filesIn adds up the files of a directory, without what is below it.
func filesIn(dir string) (bytes, inodes uint64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0 // nothing was written
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // gone meanwhile
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
	}
	return bytes, inodes
}

// storage adds the pod's volumes, and its use of the node's storage as a
// whole: its containers' layers and logs, its volumes on disk, its hosts file.
func (p *Provider) storage(ctx context.Context, out *statsapi.PodStats, pod *v1.Pod) {
	now := metav1.NewTime(p.cfg.Clock.Now())
	total := fileSystem(p.cfg.PodsDir, now)
	if total == nil {
		total = &statsapi.FsStats{Time: now}
	}
	total.UsedBytes, total.InodesUsed = ptr.To[uint64](0), ptr.To[uint64](0)
	for i := range out.Containers {
		for _, fs := range []*statsapi.FsStats{out.Containers[i].Rootfs, out.Containers[i].Logs} {
			if fs != nil {
				sum(&total.UsedBytes, fs.UsedBytes)
				sum(&total.InodesUsed, fs.InodesUsed)
			}
		}
	}
	for _, u := range p.volumesOf(ctx, pod).usage {
		bytes, inodes := uint64(max(u.Bytes, 0)), uint64(max(u.Inodes, 0))
		out.VolumeStats = append(out.VolumeStats, statsapi.VolumeStats{Name: u.Volume, FsStats: statsapi.FsStats{
			Time: metav1.NewTime(p.volumes[string(pod.UID)].at), UsedBytes: &bytes, InodesUsed: &inodes,
			AvailableBytes: unsigned(u.AvailableBytes), CapacityBytes: unsigned(u.CapacityBytes), Inodes: unsigned(u.CapacityInodes), InodesFree: unsigned(u.FreeInodes),
		}})
		if !u.Memory {
			sum(&total.UsedBytes, &bytes)
			sum(&total.InodesUsed, &inodes)
		}
	}
	if info, err := os.Lstat(filepath.Join(p.cfg.PodsDir, string(pod.UID), "etc-hosts")); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum(&total.UsedBytes, ptr.To(uint64(st.Blocks)*512))
			sum(&total.InodesUsed, ptr.To[uint64](1))
		}
	}
	out.EphemeralStorage = total
}

func unsigned(n int64) *uint64 { return ptr.To(uint64(max(n, 0))) }

// volumesOf measures a pod's volumes, or remembers. A failure leaves the
// figures of before.
func (p *Provider) volumesOf(ctx context.Context, pod *v1.Pod) volumesSeen {
	uid := string(pod.UID)
	seen, ok := p.volumes[uid]
	if p.cfg.Volumes == nil || ok && p.cfg.Clock.Since(seen.at) < volumesAge {
		return seen
	}
	usage, err := p.cfg.Volumes(ctx, pod)
	if err != nil {
		if ctx.Err() == nil {
			p.cfg.Log.Warn("measuring volumes", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		}
		return seen
	}
	seen = volumesSeen{at: p.cfg.Clock.Now(), usage: usage}
	p.volumes[uid] = seen
	return seen
}
