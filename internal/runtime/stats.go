package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
)

// cpuSampler turns CPU time into CPU use: the CRI's nano cores are the
// difference to the last time anybody asked.
type cpuSampler struct {
	mu   sync.Mutex
	last map[string]cpuSample
}

type cpuSample struct {
	at    time.Time
	usage uint64 // ns
	rate  uint64 // nano cores at that time
}

// minSampleGap is the shortest time between samples that gives a sane rate.
const minSampleGap = 100 * time.Millisecond

func newCPUSampler() *cpuSampler { return &cpuSampler{last: map[string]cpuSample{}} }

func (s *cpuSampler) rate(id string, at time.Time, usage uint64) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	prev, ok := s.last[id]
	if !ok || usage < prev.usage {
		s.last[id] = cpuSample{at: at, usage: usage}
		return 0, false
	}
	gap := at.Sub(prev.at)
	if gap < minSampleGap {
		return prev.rate, true
	}
	rate := uint64(float64(usage-prev.usage) / gap.Seconds())
	s.last[id] = cpuSample{at: at, usage: usage, rate: rate}
	return rate, true
}

func (s *cpuSampler) forget(id string) {
	s.mu.Lock()
	delete(s.last, id)
	s.mu.Unlock()
}

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

func psi(p *cgroup.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(d cgroup.PSIData) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: d.TotalNanoseconds, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &runtimeapi.PsiStats{Some: data(p.Some), Full: data(p.Full)}
}

func (r *Runtime) cpuUsage(id string, st *cgroup.Stats) *runtimeapi.CpuUsage {
	cpu := &runtimeapi.CpuUsage{
		Timestamp: st.Time.UnixNano(), UsageCoreNanoSeconds: u64(st.CPU.UsageNanoseconds), Psi: psi(st.CPU.PSI),
	}
	rate, _ := r.cpu.rate(id, st.Time, st.CPU.UsageNanoseconds)
	cpu.UsageNanoCores = u64(rate)
	return cpu
}

func memoryUsage(st *cgroup.Stats) *runtimeapi.MemoryUsage {
	m := st.Memory
	out := &runtimeapi.MemoryUsage{
		Timestamp:       st.Time.UnixNano(),
		WorkingSetBytes: u64(m.WorkingSet), UsageBytes: u64(m.Usage), RssBytes: u64(m.RSS),
		PageFaults: u64(m.PageFaults), MajorPageFaults: u64(m.MajorPageFaults), Psi: psi(m.PSI),
	}
	out.AvailableBytes = u64(m.Available)
	return out
}

// containerStats measures one container; one that doesn't run has figures of
// its writable layer only.
func (r *Runtime) containerStats(c *container) (*runtimeapi.ContainerStats, error) {
	st := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations,
		},
		WritableLayer: r.layerUsage(c),
	}
	cg, err := c.group.Stats()
	if errdefs.IsNotFound(err) {
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	st.Cpu = r.cpuUsage(c.id, cg)
	st.Memory = memoryUsage(cg)
	if s := cg.Swap; s != nil {
		st.Swap = &runtimeapi.SwapUsage{Timestamp: cg.Time.UnixNano(), SwapUsageBytes: u64(s.Usage), SwapAvailableBytes: u64(s.Available)}
	}
	st.Io = &runtimeapi.IoUsage{Timestamp: cg.Time.UnixNano(), Psi: psi(cg.IO.PSI)}
	return st, nil
}

// layerUsageAge is how old a measurement of a writable layer may be: it walks
// the tree, as containerd's does every 10 s.
const layerUsageAge = 10 * time.Second

type layerUsage struct {
	mu    sync.Mutex
	at    time.Time
	usage *runtimeapi.FilesystemUsage
}

func (r *Runtime) layerUsage(c *container) *runtimeapi.FilesystemUsage {
	u := &c.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.usage != nil && time.Since(u.at) < layerUsageAge {
		return u.usage
	}
	bytes, inodes := diskUsage(filepath.Join(c.layer, "upper"))
	u.at = time.Now()
	u.usage = &runtimeapi.FilesystemUsage{
		Timestamp:  u.at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: filepath.Join(r.cfg.Root, "containers")},
		UsedBytes:  u64(bytes),
		InodesUsed: u64(inodes),
	}
	return u.usage
}

// diskUsage sums what a tree occupies, a file with several names once. What
// vanishes meanwhile doesn't count.
func diskUsage(dir string) (bytes, inodes uint64) {
	seen := map[uint64]bool{}
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Nlink > 1 && !d.IsDir() && seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			seen[st.Ino] = true
		}
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	return bytes, inodes
}

// ContainerStats implements cri.Runtime.
func (r *Runtime) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (_ *runtimeapi.ContainerStatsResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := r.containerStats(c)
	return &runtimeapi.ContainerStatsResponse{Stats: st}, err
}

// ListContainerStats implements cri.Runtime: of those that run.
func (r *Runtime) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (_ *runtimeapi.ListContainerStatsResponse, err error) {
	defer toGRPC(&err)
	f := req.GetFilter()
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range r.allContainers() {
		if !hasPrefix(c.id, f.GetId()) || !hasPrefix(c.sandbox.id, f.GetPodSandboxId()) || !hasLabels(c.config.Labels, f.GetLabelSelector()) {
			continue
		}
		if resp.Stats, err = r.appendStats(resp.Stats, c); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// appendStats adds a container's figures to a list, if it runs.
func (r *Runtime) appendStats(list []*runtimeapi.ContainerStats, c *container) ([]*runtimeapi.ContainerStats, error) {
	runs := func() bool { return c.state() == runtimeapi.ContainerState_CONTAINER_RUNNING }
	if !runs() {
		return list, nil
	}
	st, err := r.containerStats(c)
	switch {
	case err == nil:
		return append(list, st), nil
	case !runs():
		return list, nil // ended meanwhile
	}
	return nil, err
}

// PodSandboxStats implements cri.Runtime.
func (r *Runtime) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (_ *runtimeapi.PodSandboxStatsResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if s.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("sandbox %q is not running: %w", s.id, errdefs.ErrFailedPrecondition)
	}
	st, err := r.sandboxStats(s)
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, err
}

// ListPodSandboxStats implements cri.Runtime: of those that run.
func (r *Runtime) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (_ *runtimeapi.ListPodSandboxStatsResponse, err error) {
	defer toGRPC(&err)
	f := req.GetFilter()
	var wanted []*sandbox
	for _, s := range r.allSandboxes() {
		if hasPrefix(s.id, f.GetId()) && hasLabels(s.config.Labels, f.GetLabelSelector()) && s.state() == runtimeapi.PodSandboxState_SANDBOX_READY {
			wanted = append(wanted, s)
		}
	}
	// A pod's figures are in some dozens of the kernel's files: every processor
	// reads its share.
	stats := make([]*runtimeapi.PodSandboxStats, len(wanted))
	var readers errgroup.Group
	readers.SetLimit(runtime.GOMAXPROCS(0))
	for i, s := range wanted {
		readers.Go(func() (err error) {
			if stats[i], err = r.sandboxStats(s); err != nil && s.over(err) {
				return nil // ended meanwhile
			}
			return err
		})
	}
	if err := readers.Wait(); err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, st := range stats {
		if st != nil {
			resp.Stats = append(resp.Stats, st)
		}
	}
	return resp, nil
}

// over tells whether what failed with err did so because the sandbox ended:
// its files go before its end is recorded.
func (s *sandbox) over(err error) bool {
	return errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) || s.state() != runtimeapi.PodSandboxState_SANDBOX_READY
}

func (r *Runtime) sandboxStats(s *sandbox) (*runtimeapi.PodSandboxStats, error) {
	cg, err := s.group.Stats()
	if err != nil {
		return nil, err
	}
	linux := &runtimeapi.LinuxPodSandboxStats{
		Cpu:     r.cpuUsage(s.id, cg),
		Memory:  memoryUsage(cg),
		Process: &runtimeapi.ProcessUsage{Timestamp: cg.Time.UnixNano(), ProcessCount: u64(cg.Pids.Current)},
		Io:      &runtimeapi.IoUsage{Timestamp: cg.Time.UnixNano(), Psi: psi(cg.IO.PSI)},
	}
	if !s.hostNetwork() {
		if linux.Network, err = s.networkUsage(); err != nil {
			return nil, err
		}
	}
	for _, c := range r.containersOf(s.id) {
		if linux.Containers, err = r.appendStats(linux.Containers, c); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: s.id, Metadata: s.config.Metadata, Labels: s.config.Labels, Annotations: s.config.Annotations,
		},
		Linux: linux,
	}, nil
}

// networkUsage reads the counters of the pod's interfaces; eth0 is the
// default one.
func (s *sandbox) networkUsage() (*runtimeapi.NetworkUsage, error) {
	ns, err := s.nsFile("net")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	stats, err := s.r.cfg.Network.Stats(ns)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, st := range stats {
		if st.Name == "lo" {
			continue
		}
		u := &runtimeapi.NetworkInterfaceUsage{
			Name: st.Name, RxBytes: u64(st.RxBytes), RxErrors: u64(st.RxErrors), TxBytes: u64(st.TxBytes), TxErrors: u64(st.TxErrors),
		}
		if out.DefaultInterface == nil || st.Name == "eth0" {
			out.DefaultInterface = u
		}
		out.Interfaces = append(out.Interfaces, u)
	}
	return out, nil
}
