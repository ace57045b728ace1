package stats

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"
)

// ticksPerSecond is the unit of CPU times in /proc: fixed in the kernel's ABI.
const ticksPerSecond = 100

// bootTime is when the machine started; zero if the kernel doesn't say.
func bootTime(proc string) time.Time {
	for _, f := range lines(filepath.Join(proc, "stat")) {
		if len(f) == 2 && f[0] == "btime" {
			if s, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				return time.Unix(s, 0)
			}
		}
	}
	return time.Time{}
}

// lines reads one of the kernel's files as fields. A file that isn't there
// has none: every figure is optional.
func lines(path string) [][]string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var all [][]string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		all = append(all, strings.Fields(s.Text()))
	}
	return all
}

// machine is the machine's CPU, memory, processes and, but for quick looks,
// its network.
func (p *Provider) machine(quick bool) *statsapi.NodeStats {
	now := metav1.NewTime(p.cfg.Clock.Now())
	node := &statsapi.NodeStats{NodeName: p.cfg.NodeName, StartTime: metav1.NewTime(p.bootAt)}
	node.Memory, node.Swap = memory(filepath.Join(p.cfg.Proc, "meminfo"), now)
	node.Rlimit = processes(p.cfg.Proc, now)
	if used, ok := cpuTime(filepath.Join(p.cfg.Proc, "stat")); ok {
		node.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &used}
	}
	if !quick {
		node.Network = network(p.cfg.Proc, now)
	}
	return node
}

// memory reads the machine's memory. Like kubelet's, "available" is what isn't
// in the working set: file pages that nobody used lately can be had back.
func memory(path string, now metav1.Time) (*statsapi.MemoryStats, *statsapi.SwapStats) {
	m := map[string]uint64{}
	for _, f := range lines(path) {
		if len(f) == 3 && f[2] == "kB" {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				m[strings.TrimSuffix(f[0], ":")] = n * 1024
			}
		}
	}
	total := m["MemTotal"]
	if total == 0 {
		return nil, nil
	}
	available := min(m["MemFree"]+m["Inactive(file)"], total)
	memory := &statsapi.MemoryStats{
		Time: now, AvailableBytes: &available, UsageBytes: ptr.To(total - min(m["MemFree"], total)),
		WorkingSetBytes: ptr.To(total - available), RSSBytes: ptr.To(m["AnonPages"]),
	}
	swap := &statsapi.SwapStats{Time: now, SwapAvailableBytes: ptr.To(m["SwapFree"]), SwapUsageBytes: ptr.To(m["SwapTotal"] - min(m["SwapFree"], m["SwapTotal"]))}
	return memory, swap
}

// processes counts the machine's tasks and how many there may be.
func processes(proc string, now metav1.Time) *statsapi.RlimitStats {
	limits := &statsapi.RlimitStats{Time: now}
	for _, name := range []string{"pid_max", "threads-max"} {
		f := lines(filepath.Join(proc, "sys/kernel", name))
		if len(f) != 1 || len(f[0]) != 1 {
			continue
		}
		if n, err := strconv.ParseInt(f[0][0], 10, 64); err == nil && (limits.MaxPID == nil || n < *limits.MaxPID) {
			limits.MaxPID = &n
		}
	}
	// "1.36 3.49 4.53 2/3518 3715089": running and existing tasks.
	if f := lines(filepath.Join(proc, "loadavg")); len(f) == 1 && len(f[0]) == 5 {
		if _, all, ok := strings.Cut(f[0][3], "/"); ok {
			if n, err := strconv.ParseInt(all, 10, 64); err == nil {
				limits.NumOfRunningProcesses = &n
			}
		}
	}
	return limits
}

// cpuTime is what all processors worked since the machine started.
func cpuTime(path string) (uint64, bool) {
	for _, f := range lines(path) {
		if len(f) < 9 || f[0] != "cpu" {
			continue
		}
		var ticks uint64
		for i, s := range f[1:9] { // user nice system idle iowait irq softirq steal
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return 0, false
			}
			if i != 3 && i != 4 {
				ticks += n
			}
		}
		return ticks * (1e9 / ticksPerSecond), true
	}
	return 0, false
}

// network reads the counters of the machine's interfaces; the default one is
// that of the default route.
func network(proc string, now metav1.Time) *statsapi.NetworkStats {
	main := ""
	for _, f := range lines(filepath.Join(proc, "net/route")) {
		if len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			main = f[0]
			break
		}
	}
	stats := &statsapi.NetworkStats{Time: now}
	for _, f := range lines(filepath.Join(proc, "net/dev")) {
		if len(f) < 12 || !strings.HasSuffix(f[0], ":") || f[0] == "lo:" {
			continue
		}
		one := statsapi.InterfaceStats{Name: strings.TrimSuffix(f[0], ":")}
		for i, to := range map[int]**uint64{1: &one.RxBytes, 3: &one.RxErrors, 9: &one.TxBytes, 11: &one.TxErrors} {
			if n, err := strconv.ParseUint(f[i], 10, 64); err == nil {
				*to = &n
			}
		}
		if one.Name == main {
			stats.InterfaceStats = one
		}
		stats.Interfaces = append(stats.Interfaces, one)
	}
	return stats
}

// self is this process: everything kubelet and runtime are two of elsewhere.
func (p *Provider) self() statsapi.ContainerStats {
	now := metav1.NewTime(p.cfg.Clock.Now())
	c := statsapi.ContainerStats{Name: statsapi.SystemContainerKubelet}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err == nil {
		used := uint64(u.Utime.Nano() + u.Stime.Nano())
		c.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &used, UsageNanoCores: p.rates.rate("self", now.Time, used)}
	}
	// "size resident shared …" in pages; what is shared is of files.
	if f := lines(filepath.Join(p.cfg.Proc, "self/statm")); len(f) == 1 && len(f[0]) > 2 {
		resident, err := strconv.ParseUint(f[0][1], 10, 64)
		shared, err2 := strconv.ParseUint(f[0][2], 10, 64)
		if err == nil && err2 == nil && shared <= resident {
			page := uint64(os.Getpagesize())
			c.Memory = &statsapi.MemoryStats{Time: now, UsageBytes: ptr.To(resident * page), WorkingSetBytes: ptr.To(resident * page), RSSBytes: ptr.To((resident - shared) * page)}
		}
	}
	return c
}

// allPods adds up the pods. They may use all of the machine.
func (p *Provider) allPods(node *statsapi.NodeStats, pods []statsapi.PodStats) statsapi.ContainerStats {
	now := metav1.NewTime(p.cfg.Clock.Now())
	c := statsapi.ContainerStats{Name: statsapi.SystemContainerPods, CPU: &statsapi.CPUStats{Time: now}, Memory: &statsapi.MemoryStats{Time: now}}
	for i := range pods {
		if cpu := pods[i].CPU; cpu != nil {
			sum(&c.CPU.UsageNanoCores, cpu.UsageNanoCores)
			sum(&c.CPU.UsageCoreNanoSeconds, cpu.UsageCoreNanoSeconds)
		}
		if m := pods[i].Memory; m != nil {
			sum(&c.Memory.UsageBytes, m.UsageBytes)
			sum(&c.Memory.WorkingSetBytes, m.WorkingSetBytes)
			sum(&c.Memory.RSSBytes, m.RSSBytes)
		}
	}
	if node.Memory != nil {
		total := *node.Memory.AvailableBytes + *node.Memory.WorkingSetBytes
		c.Memory.AvailableBytes = ptr.To(total - min(value(c.Memory.WorkingSetBytes), total))
	}
	return c
}

func value(p *uint64) uint64 {
	if p == nil {
		return 0
	}
	return *p
}

// sum adds what is there.
func sum(to **uint64, more *uint64) {
	if more == nil {
		return
	}
	*to = ptr.To(value(*to) + *more)
}

// imageFs is what the runtime told of the file systems it uses.
type imageFs struct {
	at                   time.Time
	images, containers   string // mount points or directories on them
	used, usedContainers statsapi.FsStats
}

// disks adds the file systems of the node, of images and of containers.
func (p *Provider) disks(ctx context.Context, node *statsapi.NodeStats) {
	now := metav1.NewTime(p.cfg.Clock.Now())
	node.Fs = fileSystem(p.cfg.PodsDir, now)
	known, err := p.runtimeFs(ctx)
	if err != nil {
		// The thresholds of images have no observation then.
		p.cfg.Log.Warn("asking the runtime for its file systems", "err", err)
		return
	}
	node.Runtime = &statsapi.RuntimeStats{
		ImageFs:     onFileSystem(known.images, now, known.used),
		ContainerFs: onFileSystem(known.containers, now, known.usedContainers),
	}
}

func (p *Provider) runtimeFs(ctx context.Context) (imageFs, error) {
	p.fsMu.Lock()
	defer p.fsMu.Unlock()
	if p.imageFs.images != "" && p.cfg.Clock.Since(p.imageFs.at) < imageFsAge {
		return p.imageFs, nil
	}
	resp, err := p.cfg.CRI.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return imageFs{}, err
	}
	known := imageFs{at: p.cfg.Clock.Now()}
	take := func(list []*runtimeapi.FilesystemUsage, at *string, used *statsapi.FsStats) {
		for _, fs := range list {
			*at = fs.GetFsId().GetMountpoint()
			sum(&used.UsedBytes, optional(fs.UsedBytes))
			sum(&used.InodesUsed, optional(fs.InodesUsed))
		}
	}
	take(resp.ImageFilesystems, &known.images, &known.used)
	take(resp.ContainerFilesystems, &known.containers, &known.usedContainers)
	if known.containers == "" {
		known.containers, known.usedContainers = known.images, known.used
	}
	p.imageFs = known
	return known, nil
}

// fileSystem is a whole file system; nil when the kernel doesn't tell.
func fileSystem(dir string, now metav1.Time) *statsapi.FsStats {
	var st unix.Statfs_t
	if dir == "" || unix.Statfs(dir, &st) != nil {
		return nil
	}
	block := uint64(st.Frsize)
	return &statsapi.FsStats{
		Time: now, AvailableBytes: ptr.To(st.Bavail * block), CapacityBytes: ptr.To(st.Blocks * block),
		UsedBytes: ptr.To((st.Blocks - st.Bfree) * block), Inodes: ptr.To(st.Files), InodesFree: ptr.To(st.Ffree), InodesUsed: ptr.To(st.Files - st.Ffree),
	}
}

// onFileSystem is a part of a file system: its own use, the whole's rest.
func onFileSystem(dir string, now metav1.Time, used statsapi.FsStats) *statsapi.FsStats {
	fs := fileSystem(dir, now)
	if fs != nil {
		fs.UsedBytes, fs.InodesUsed = used.UsedBytes, used.InodesUsed
	}
	return fs
}

// Separate tells whether images are on another file system than the pods'
// directories, and whether the containers' layers nevertheless aren't.
func (p *Provider) Separate(ctx context.Context) (images, split bool, err error) {
	known, err := p.runtimeFs(ctx)
	if err != nil {
		return false, false, err
	}
	device := func(path string) (uint64, error) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return 0, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		return uint64(st.Dev), nil
	}
	pods, err := device(p.cfg.PodsDir)
	if err != nil {
		return false, false, err
	}
	imageDev, err := device(known.images)
	if err != nil {
		return false, false, err
	}
	layerDev, err := device(known.containers)
	if err != nil {
		return false, false, err
	}
	images = imageDev != pods
	return images, images && layerDev == pods, nil
}
