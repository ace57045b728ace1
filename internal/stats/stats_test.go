package stats

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"unipod.dev/unipod/internal/cri/fakecri"
	"unipod.dev/unipod/internal/podspec"
	"unipod.dev/unipod/internal/volume"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func n(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// bench is a provider over a fake runtime and a machine of files.
type bench struct {
	*Provider
	t     *testing.T
	rt    *fakecri.Runtime
	clock *clocktesting.FakeClock
	pod   *v1.Pod
	asked int // for volumes
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 200 kB\nInactive(file): 300 kB\nAnonPages: 400 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n")
	write("proc/stat", "cpu  100 0 50 9000 10 0 1 2 0 0\nbtime 1700000000\n")
	write("proc/loadavg", "1.36 3.49 4.53 2/3518 3715089\n")
	write("proc/sys/kernel/pid_max", "4194304\n")
	write("proc/sys/kernel/threads-max", "32768\n")
	write("proc/net/dev", "Inter-|   Receive\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n")
	write("proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\neth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n")
	write("proc/self/statm", "100 50 20 1 0 1 0\n")
	write("logs/default_web_u1/app/0.log", strings.Repeat("x", 5000))
	write("pods/u1/etc-hosts", "127.0.0.1 localhost\n")
	b := &bench{t: t, rt: fakecri.New(clocktesting.NewFakeClock(epoch)), clock: clocktesting.NewFakeClock(epoch)}
	b.rt.FsInfo = &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: dir}, UsedBytes: n(77), InodesUsed: n(7),
	}}}
	b.pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u1"}}
	started := metav1.NewTime(epoch)
	b.pod.Status.StartTime = &started
	b.pod.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "app", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: started}}}}
	b.Provider = New(Config{
		CRI: b.rt, NodeName: "node", PodsDir: filepath.Join(dir, "pods"), LogDir: filepath.Join(dir, "logs"), Proc: filepath.Join(dir, "proc"), Clock: b.clock,
		Pods: func() []*v1.Pod { return []*v1.Pod{b.pod} },
		Volumes: func(context.Context, *v1.Pod) ([]volume.Usage, error) {
			b.asked++
			return []volume.Usage{{Volume: "data", EmptyDir: true, Bytes: 1000, Inodes: 2}, {Volume: "mem", Memory: true, Bytes: 5000, Inodes: 1}}, nil
		},
	})
	return b
}

// usage is the container's figures after it has used some seconds of CPU.
func usage(at time.Time, cpu uint64) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: "c1", Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, Labels: map[string]string{podspec.LabelPodUID: "u1"}},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at.UnixNano(), UsageCoreNanoSeconds: n(cpu)},
		Memory:     &runtimeapi.MemoryUsage{Timestamp: at.UnixNano(), WorkingSetBytes: n(300), UsageBytes: n(400), RssBytes: n(200), PageFaults: n(1), MajorPageFaults: n(2)},
		Swap:       &runtimeapi.SwapUsage{Timestamp: at.UnixNano(), SwapUsageBytes: n(3)},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: n(2000), InodesUsed: n(4),
		},
	}
}

func podUsage(at time.Time, cpu uint64) []*runtimeapi.PodSandboxStats {
	return []*runtimeapi.PodSandboxStats{{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: "s1", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"}, Labels: map[string]string{podspec.LabelPodUID: "u1"},
		},
		Linux: &runtimeapi.LinuxPodSandboxStats{
			Cpu:    &runtimeapi.CpuUsage{Timestamp: at.UnixNano(), UsageCoreNanoSeconds: n(2 * cpu)},
			Memory: &runtimeapi.MemoryUsage{Timestamp: at.UnixNano(), WorkingSetBytes: n(500), AvailableBytes: n(9)},
			Network: &runtimeapi.NetworkUsage{Timestamp: at.UnixNano(), DefaultInterface: &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: n(1)},
				Interfaces: []*runtimeapi.NetworkInterfaceUsage{{Name: "eth0", RxBytes: n(1)}}},
			Process:    &runtimeapi.ProcessUsage{ProcessCount: n(6)},
			Containers: []*runtimeapi.ContainerStats{usage(at, cpu)},
		},
	}, {
		// Somebody else's sandbox.
		Attributes: &runtimeapi.PodSandboxAttributes{Id: "s2", Metadata: &runtimeapi.PodSandboxMetadata{Name: "x"}},
	}}
}

func TestNode(t *testing.T) {
	b := newBench(t)
	node := b.Node(t.Context())
	if *node.Memory.AvailableBytes != 500<<10 || *node.Memory.WorkingSetBytes != 500<<10 || *node.Memory.UsageBytes != 800<<10 || *node.Memory.RSSBytes != 400<<10 {
		t.Errorf("memory %+v", node.Memory)
	}
	if *node.Swap.SwapUsageBytes != 30<<10 || *node.Swap.SwapAvailableBytes != 20<<10 {
		t.Errorf("swap %+v", node.Swap)
	}
	if *node.Rlimit.MaxPID != 32768 || *node.Rlimit.NumOfRunningProcesses != 3518 {
		t.Errorf("processes %+v", node.Rlimit)
	}
	if *node.CPU.UsageCoreNanoSeconds != 153*1e7 || node.StartTime.Unix() != 1700000000 {
		t.Errorf("CPU %d, started %v", *node.CPU.UsageCoreNanoSeconds, node.StartTime)
	}
	if *node.Fs.CapacityBytes == 0 || *node.Runtime.ImageFs.UsedBytes != 77 || *node.Runtime.ContainerFs.InodesUsed != 7 || *node.Runtime.ImageFs.CapacityBytes != *node.Fs.CapacityBytes {
		t.Errorf("file systems %+v %+v", node.Fs, node.Runtime.ImageFs)
	}
	if images, split, err := b.Separate(t.Context()); images || split || err != nil {
		t.Errorf("separate: %v %v %v", images, split, err)
	}
}

// TestNoFiles: a kernel that tells nothing makes gaps, not failures.
func TestNoFiles(t *testing.T) {
	b := newBench(t)
	b.cfg.Proc = t.TempDir()
	b.cfg.PodsDir = filepath.Join(t.TempDir(), "gone")
	b.rt.FsInfo = nil
	node := b.Node(t.Context())
	if node.Memory != nil || node.CPU != nil || node.Fs != nil || node.Runtime != nil || node.Rlimit.MaxPID != nil {
		t.Errorf("%+v", node)
	}
	if err := os.WriteFile(filepath.Join(b.cfg.Proc, "meminfo"), []byte("MemTotal: many kB\nMemFree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if node := b.Node(t.Context()); node.Memory != nil {
		t.Errorf("%+v", node.Memory)
	}
}

func TestSummary(t *testing.T) {
	b := newBench(t)
	b.rt.PodStats = func() []*runtimeapi.PodSandboxStats { return podUsage(b.clock.Now(), uint64(b.clock.Since(epoch))) }
	if _, err := b.Get(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	b.clock.Step(2 * time.Second)
	again, err := b.Get(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Pods) != 1 || again.Pods[0].CPU.UsageNanoCores != nil {
		t.Errorf("within its age a summary is not the one before: %+v", again.Pods)
	}
	s, err := b.Get(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	p := s.Pods[0]
	if p.PodRef.Name != "web" || p.PodRef.Namespace != "default" || p.PodRef.UID != "u1" || !p.StartTime.Time.Equal(epoch) {
		t.Errorf("pod %+v started %v", p.PodRef, p.StartTime)
	}
	// Two processors' worth, of a runtime that reckons no rates.
	if *p.CPU.UsageNanoCores != 2e9 || *p.Containers[0].CPU.UsageNanoCores != 1e9 {
		t.Errorf("rates %d, %d", *p.CPU.UsageNanoCores, *p.Containers[0].CPU.UsageNanoCores)
	}
	if *p.Memory.WorkingSetBytes != 500 || *p.Network.RxBytes != 1 || *p.ProcessStats.ProcessCount != 6 || *p.Swap.SwapUsageBytes != 3 {
		t.Errorf("pod %+v", p)
	}
	c := p.Containers[0]
	if *c.Rootfs.UsedBytes != 2000 || *c.Logs.UsedBytes < 5000 || *c.Logs.InodesUsed != 1 || !c.StartTime.Time.Equal(epoch) || *c.Rootfs.CapacityBytes == 0 {
		t.Errorf("container %+v %+v", c.Rootfs, c.Logs)
	}
	if len(p.VolumeStats) != 2 || *p.VolumeStats[0].UsedBytes != 1000 || p.VolumeStats[1].Name != "mem" {
		t.Errorf("volumes %+v", p.VolumeStats)
	}
	// Layer, log, hosts file and the volume on disk, but not the one in memory.
	if got := *p.EphemeralStorage.UsedBytes; got < 2000+1000+5000 || got > 2000+1000+4096*4 {
		t.Errorf("ephemeral storage %d", got)
	}
	if b.asked != 1 {
		t.Errorf("volumes measured %d times in two seconds", b.asked)
	}
	for _, sys := range s.Node.SystemContainers {
		if sys.Name == "pods" && (*sys.Memory.WorkingSetBytes != 500 || *sys.Memory.AvailableBytes != 1000<<10-500) {
			t.Errorf("pods together %+v", sys.Memory)
		}
	}
	if s.Node.Network.Name != "eth0" || *s.Node.Network.TxErrors != 3 || len(s.Node.Network.Interfaces) != 1 {
		t.Errorf("network %+v", s.Node.Network)
	}
	light, err := b.GetCPUAndMemoryStats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lp := light.Pods[0]; lp.VolumeStats != nil || lp.Network != nil || lp.Containers[0].Rootfs != nil || *lp.Memory.WorkingSetBytes != 500 {
		t.Errorf("CPU and memory only: %+v", lp)
	}
}

// TestPod measures one pod anew.
func TestPod(t *testing.T) {
	b := newBench(t)
	b.rt.PodStats = func() []*runtimeapi.PodSandboxStats { return podUsage(b.clock.Now(), 1) }
	for range 2 {
		if st, err := b.Pod(t.Context(), b.pod); err != nil || *st.VolumeStats[0].UsedBytes != 1000 {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if b.asked != 2 {
		t.Errorf("volumes measured %d times, wanted anew each time", b.asked)
	}
	other := b.pod.DeepCopy()
	other.UID = "u2"
	if st, err := b.Pod(t.Context(), other); st != nil || err != nil {
		t.Errorf("a pod nobody runs: %+v, %v", st, err)
	}
}

// TestOldRuntime: a runtime without figures of pods is added up.
func TestOldRuntime(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	if _, err := b.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"}, Labels: map[string]string{podspec.LabelPodUID: "u1"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}},
	}}); err != nil {
		t.Fatal(err)
	}
	b.rt.ContainerUsage = func() []*runtimeapi.ContainerStats {
		second := usage(b.clock.Now(), 5)
		second.Attributes.Metadata.Name = "log"
		return []*runtimeapi.ContainerStats{usage(b.clock.Now(), 7), second}
	}
	s, err := b.Get(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	p := s.Pods[0]
	if *p.CPU.UsageCoreNanoSeconds != 12 || *p.Memory.WorkingSetBytes != 600 || *p.Memory.PageFaults != 2 || len(p.Containers) != 2 {
		t.Errorf("%+v %+v", p.CPU, p.Memory)
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	b := newBench(t)
	b.rt.PodStats = func() []*runtimeapi.PodSandboxStats { return podUsage(epoch, 1) }
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				_, err := b.Get(t.Context(), true)
				_, err2 := b.GetCPUAndMemoryStats(t.Context())
				b.Node(t.Context())
				if err != nil || err2 != nil {
					t.Error(err, err2)
				}
			}
		})
	}
	wg.Wait()
}
