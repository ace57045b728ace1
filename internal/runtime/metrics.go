package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metric is one of the metrics that kubelet's /metrics/cadvisor serves, by
// cAdvisor's name (KEP-2371). Values are whole numbers on the CRI: seconds of
// CPU time are cut off, as containerd's.
type metric struct {
	name    string
	counter bool
	labels  []string // beyond the base ones
	help    string
}

// baseLabels are those of every metric.
var baseLabels = []string{"pod", "namespace", "container", "id", "image"}

// The metrics, in the order they are listed.
var metricList = []metric{
	{"container_cpu_user_seconds_total", true, nil, "Cumulative user CPU time consumed in seconds."},
	{"container_cpu_system_seconds_total", true, nil, "Cumulative system CPU time consumed in seconds."},
	{"container_cpu_usage_seconds_total", true, nil, "Cumulative CPU time consumed in seconds."},
	{"container_cpu_cfs_periods_total", true, nil, "Number of elapsed enforcement period intervals."},
	{"container_cpu_cfs_throttled_periods_total", true, nil, "Number of throttled period intervals."},
	{"container_cpu_cfs_throttled_seconds_total", true, nil, "Total time duration the container has been throttled."},
	{"container_memory_cache", false, nil, "Total page cache memory in bytes."},
	{"container_memory_rss", false, nil, "Size of RSS in bytes."},
	{"container_memory_kernel_usage", false, nil, "Size of kernel memory allocated in bytes."},
	{"container_memory_mapped_file", false, nil, "Size of memory mapped files in bytes."},
	{"container_memory_swap", false, nil, "Container swap usage in bytes."},
	{"container_memory_failcnt", true, nil, "Number of times memory usage hit the limit; always 0 on cgroup v2."},
	{"container_memory_usage_bytes", false, nil, "Current memory usage in bytes, including all memory regardless of when it was accessed."},
	{"container_memory_max_usage_bytes", false, nil, "Maximum memory usage recorded in bytes."},
	{"container_memory_working_set_bytes", false, nil, "Current working set in bytes."},
	{"container_memory_total_active_file_bytes", false, nil, "Current active file cache in bytes."},
	{"container_memory_total_inactive_file_bytes", false, nil, "Current inactive file cache in bytes."},
	{"container_memory_failures_total", true, []string{"failure_type", "scope"}, "Cumulative count of memory allocation failures."},
	{"container_oom_events_total", true, nil, "Count of out of memory events observed for the container."},
	{"container_fs_inodes_free", false, []string{"device"}, "Number of available inodes."},
	{"container_fs_inodes_total", false, []string{"device"}, "Number of inodes."},
	{"container_fs_limit_bytes", false, []string{"device"}, "Number of bytes that can be consumed by the container on this filesystem."},
	{"container_fs_usage_bytes", false, []string{"device"}, "Number of bytes that are consumed by the container on this filesystem."},
	{"container_fs_reads_bytes_total", true, []string{"device"}, "Cumulative count of bytes read."},
	{"container_fs_reads_total", true, []string{"device"}, "Cumulative count of reads completed."},
	{"container_fs_writes_bytes_total", true, []string{"device"}, "Cumulative count of bytes written."},
	{"container_fs_writes_total", true, []string{"device"}, "Cumulative count of writes completed."},
	{"container_blkio_device_usage_total", true, []string{"device", "major", "minor", "operation"}, "Blkio device bytes usage."},
	{"container_network_receive_bytes_total", true, []string{"interface"}, "Cumulative count of bytes received."},
	{"container_network_receive_packets_total", true, []string{"interface"}, "Cumulative count of packets received."},
	{"container_network_receive_packets_dropped_total", true, []string{"interface"}, "Cumulative count of packets dropped while receiving."},
	{"container_network_receive_errors_total", true, []string{"interface"}, "Cumulative count of errors encountered while receiving."},
	{"container_network_transmit_bytes_total", true, []string{"interface"}, "Cumulative count of bytes transmitted."},
	{"container_network_transmit_packets_total", true, []string{"interface"}, "Cumulative count of packets transmitted."},
	{"container_network_transmit_packets_dropped_total", true, []string{"interface"}, "Cumulative count of packets dropped while transmitting."},
	{"container_network_transmit_errors_total", true, []string{"interface"}, "Cumulative count of errors encountered while transmitting."},
	{"container_processes", false, nil, "Number of processes running inside the container."},
	{"container_file_descriptors", false, nil, "Number of open file descriptors for the container."},
	{"container_sockets", false, nil, "Number of open sockets for the container."},
	{"container_threads_max", false, nil, "Maximum number of threads allowed inside the container; 0 is unlimited."},
	{"container_threads", false, nil, "Number of threads running inside the container."},
	{"container_ulimits_soft", false, []string{"ulimit"}, "Soft ulimit values for the container's first process."},
	{"container_last_seen", false, nil, "Last time the container was seen, in seconds since 1970."},
	{"container_start_time_seconds", false, nil, "Start time of the container in seconds since 1970."},
	{"container_spec_cpu_period", false, nil, "CPU period of the container in microseconds."},
	{"container_spec_cpu_shares", false, nil, "CPU shares of the container."},
	{"container_spec_memory_limit_bytes", false, nil, "Memory limit of the container; 0 is unlimited."},
	{"container_spec_memory_reservation_limit_bytes", false, nil, "Memory reservation limit of the container."},
	{"container_spec_memory_swap_limit_bytes", false, nil, "Memory and swap limit of the container; 0 is unlimited."},
}

var metricByName = func() map[string]metric {
	m := map[string]metric{}
	for _, d := range metricList {
		m[d.name] = d
	}
	return m
}()

// ListMetricDescriptors implements cri.Runtime.
func (r *Runtime) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range metricList {
		resp.Descriptors = append(resp.Descriptors, &runtimeapi.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels),
		})
	}
	return resp, nil
}

// ListPodSandboxMetrics implements cri.Runtime.
func (r *Runtime) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (_ *runtimeapi.ListPodSandboxMetricsResponse, err error) {
	defer toGRPC(&err)
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, s := range r.allSandboxes() {
		if s.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		pod, err := r.podMetrics(s)
		if err != nil && s.over(err) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("metrics of sandbox %s: %w", s.id, err)
		}
		resp.PodMetrics = append(resp.PodMetrics, pod)
	}
	return resp, nil
}

// sink collects the metrics of one container, or of a pod as a whole.
type sink struct {
	at     int64
	labels []string
	out    []*runtimeapi.Metric
}

func (s *sink) add(name string, value uint64, labels ...string) {
	kind := runtimeapi.MetricType_GAUGE
	if metricByName[name].counter {
		kind = runtimeapi.MetricType_COUNTER
	}
	s.out = append(s.out, &runtimeapi.Metric{
		Name: name, Timestamp: s.at, MetricType: kind, LabelValues: slices.Concat(s.labels, labels), Value: u64(value),
	})
}

func (r *Runtime) podMetrics(s *sandbox) (*runtimeapi.PodSandboxMetrics, error) {
	m := s.config.Metadata
	now := time.Now()
	pod := &sink{at: now.UnixNano(), labels: []string{m.Name, m.Namespace, "", s.id, ""}}
	if !s.hostNetwork() {
		if err := s.networkMetrics(pod); err != nil {
			return nil, err
		}
	}
	detail, err := s.group.Detail()
	if err != nil {
		return nil, err
	}
	pod.cgroup(detail)
	pod.add("container_last_seen", uint64(now.Unix()))
	pod.add("container_start_time_seconds", uint64(s.createdAt().Unix()))
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: s.id, Metrics: pod.out}
	for _, c := range r.containersOf(s.id) {
		if c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		cm, err := r.containerMetrics(c, now)
		if err != nil && c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		out.ContainerMetrics = append(out.ContainerMetrics, cm)
	}
	return out, nil
}

func (s *sandbox) networkMetrics(pod *sink) error {
	ns, err := s.nsFile("net")
	if err != nil {
		return err
	}
	defer ns.Close()
	stats, err := s.r.cfg.Network.Stats(ns)
	if err != nil {
		return err
	}
	for _, st := range stats {
		for name, v := range map[string]uint64{
			"receive_bytes": st.RxBytes, "receive_packets": st.RxPackets, "receive_packets_dropped": st.RxDropped, "receive_errors": st.RxErrors,
			"transmit_bytes": st.TxBytes, "transmit_packets": st.TxPackets, "transmit_packets_dropped": st.TxDropped, "transmit_errors": st.TxErrors,
		} {
			pod.add("container_network_"+name+"_total", v, st.Name)
		}
	}
	return nil
}

func (r *Runtime) containerMetrics(c *container, now time.Time) (*runtimeapi.ContainerMetrics, error) {
	m := c.sandbox.config.Metadata
	c.mu.Lock()
	started, pid, resources := c.rec.StartedAt, c.rec.PID, c.rec.resources()
	c.mu.Unlock()
	image := c.config.Image.UserSpecifiedImage
	if image == "" {
		image = c.config.Image.Image
	}
	s := &sink{at: now.UnixNano(), labels: []string{m.Name, m.Namespace, c.config.Metadata.Name, c.id, image}}
	detail, err := c.group.Detail()
	if err != nil {
		return nil, err
	}
	s.cgroup(detail)
	if kills, err := c.group.OOMKills(); err == nil {
		s.add("container_oom_events_total", kills)
	}
	s.disk(c, r)
	s.processes(c)
	s.ulimits(pid)
	s.add("container_last_seen", uint64(now.Unix()))
	s.add("container_start_time_seconds", uint64(started.Unix()))
	s.add("container_spec_cpu_period", uint64(max(resources.GetCpuPeriod(), 0)))
	s.add("container_spec_cpu_shares", uint64(max(resources.GetCpuShares(), 0)))
	s.add("container_spec_memory_limit_bytes", uint64(max(resources.GetMemoryLimitInBytes(), 0)))
	s.add("container_spec_memory_reservation_limit_bytes", 0)
	s.add("container_spec_memory_swap_limit_bytes", uint64(max(resources.GetMemorySwapLimitInBytes(), 0)))
	return &runtimeapi.ContainerMetrics{ContainerId: c.id, Metrics: s.out}, nil
}

// cgroup adds what the control group counts.
func (s *sink) cgroup(d *cgroups.Stats) {
	const second = uint64(time.Second)
	cpu, throttle := d.CpuStats.CpuUsage, d.CpuStats.ThrottlingData
	s.add("container_cpu_usage_seconds_total", cpu.TotalUsage/second)
	s.add("container_cpu_user_seconds_total", cpu.UsageInUsermode/second)
	s.add("container_cpu_system_seconds_total", cpu.UsageInKernelmode/second)
	s.add("container_cpu_cfs_periods_total", throttle.Periods)
	s.add("container_cpu_cfs_throttled_periods_total", throttle.ThrottledPeriods)
	s.add("container_cpu_cfs_throttled_seconds_total", throttle.ThrottledTime/second)

	mem := d.MemoryStats
	// stat reads a count by its v2 name or by v1's hierarchical or plain one.
	stat := func(names ...string) uint64 {
		for _, n := range names {
			if v, ok := mem.Stats[n]; ok {
				return v
			}
		}
		return 0
	}
	inactive := stat("total_inactive_file", "inactive_file")
	s.add("container_memory_cache", mem.Cache)
	s.add("container_memory_rss", stat("total_rss", "anon"))
	s.add("container_memory_kernel_usage", max(mem.KernelUsage.Usage, stat("kernel")))
	s.add("container_memory_mapped_file", stat("total_mapped_file", "file_mapped"))
	s.add("container_memory_swap", max(mem.SwapOnlyUsage.Usage, stat("total_swap")))
	s.add("container_memory_failcnt", mem.Usage.Failcnt)
	s.add("container_memory_usage_bytes", mem.Usage.Usage)
	s.add("container_memory_max_usage_bytes", mem.Usage.MaxUsage)
	s.add("container_memory_working_set_bytes", mem.Usage.Usage-min(mem.Usage.Usage, inactive))
	s.add("container_memory_total_active_file_bytes", stat("total_active_file", "active_file"))
	s.add("container_memory_total_inactive_file_bytes", inactive)
	s.add("container_memory_failures_total", stat("total_pgfault", "pgfault"), "pgfault", "container")
	s.add("container_memory_failures_total", stat("total_pgmajfault", "pgmajfault"), "pgmajfault", "container")

	s.add("container_threads", d.PidsStats.Current)
	s.add("container_threads_max", d.PidsStats.Limit)
	for _, e := range d.BlkioStats.IoServiceBytesRecursive {
		dev := deviceName(e.Major, e.Minor)
		s.add("container_blkio_device_usage_total", e.Value, dev, fmt.Sprint(e.Major), fmt.Sprint(e.Minor), e.Op)
		switch strings.ToLower(e.Op) {
		case "read":
			s.add("container_fs_reads_bytes_total", e.Value, dev)
		case "write":
			s.add("container_fs_writes_bytes_total", e.Value, dev)
		}
	}
	for _, e := range d.BlkioStats.IoServicedRecursive {
		dev := deviceName(e.Major, e.Minor)
		switch strings.ToLower(e.Op) {
		case "read":
			s.add("container_fs_reads_total", e.Value, dev)
		case "write":
			s.add("container_fs_writes_total", e.Value, dev)
		}
	}
}

// deviceName is a block device's name in /dev, or its numbers.
func deviceName(major, minor uint64) string {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return fmt.Sprintf("%d:%d", major, minor)
	}
	return "/dev/" + filepath.Base(link)
}

// disk adds the writable layer's use of its file system.
func (s *sink) disk(c *container, r *Runtime) {
	const device = "/"
	s.add("container_fs_usage_bytes", r.layerUsage(c).UsedBytes.Value, device)
	var fs unix.Statfs_t
	if err := unix.Statfs(c.layer, &fs); err != nil {
		return // removed meanwhile
	}
	s.add("container_fs_limit_bytes", fs.Blocks*uint64(fs.Bsize), device)
	s.add("container_fs_inodes_total", fs.Files, device)
	s.add("container_fs_inodes_free", fs.Ffree, device)
}

// processes counts the container's processes and what they have open.
func (s *sink) processes(c *container) {
	pids, err := c.group.PIDs()
	if err != nil {
		return
	}
	var files, sockets uint64
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		names, err := os.ReadDir(dir)
		if err != nil {
			continue // ended meanwhile
		}
		files += uint64(len(names))
		for _, n := range names {
			if to, err := os.Readlink(dir + "/" + n.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				sockets++
			}
		}
	}
	s.add("container_processes", uint64(len(pids)))
	s.add("container_file_descriptors", files)
	s.add("container_sockets", sockets)
}

// ulimits adds the soft limits of the container's first process.
func (s *sink) ulimits(pid int) {
	var lim unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &lim); err == nil {
		s.add("container_ulimits_soft", lim.Cur, "max_open_files")
	}
}
