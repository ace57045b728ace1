package runtime

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodRuns(t *testing.T) {
	w := newWorld(t)
	p := w.pod("web")
	id := p.start("app", []string{"sh", "-c", "echo hello; hostname; sleep 1000"})
	if out, code := w.exec(id, "sh", "-c", "echo $FROM; id -u"); code != 0 || out != "image\n0\n" {
		t.Errorf("exec: %q, exit %d", out, code)
	}
	for range 1000 {
		if w.output(id) == "hello\nweb\n" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 0}); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.ExitCode != 137 || st.Reason != "Error" {
		t.Errorf("killed: exit %d, reason %s", st.ExitCode, st.Reason)
	}
	if out := w.output(id); out != "hello\nweb\n" {
		t.Errorf("log: %q", out)
	}
	out, st := p.run("exit 3")
	if st.ExitCode != 3 || out != "" {
		t.Errorf("exit code %d, output %q", st.ExitCode, out)
	}
	_, err := p.create("none", nil, func(c *runtimeapi.ContainerConfig) { c.Image.Image = "localhost/none" })
	if err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("an image that isn't there: %v", err)
	}
}

// Every metric that is described is delivered, by names and labels that agree.
func TestMetrics(t *testing.T) {
	w := newWorld(t)
	p := w.pod("m")
	id := p.start("busy", []string{"sh", "-c", "dd if=/dev/zero of=/file bs=1k count=512; while true; do :; done"}, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000}
	})
	time.Sleep(1500 * time.Millisecond)
	desc, err := w.ListMetricDescriptors(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]int{}
	for _, d := range desc.Descriptors {
		keys[d.Name] = len(d.LabelKeys)
	}
	resp, err := w.ListPodSandboxMetrics(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.PodMetrics) != 1 || len(resp.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("metrics of %d pods", len(resp.PodMetrics))
	}
	pm := resp.PodMetrics[0]
	seen := map[string]uint64{}
	for _, m := range append(pm.Metrics, pm.ContainerMetrics[0].Metrics...) {
		if keys[m.Name] != len(m.LabelValues) {
			t.Errorf("%s has %d label values for %d keys", m.Name, len(m.LabelValues), keys[m.Name])
		}
		seen[m.Name] = m.Value.Value
	}
	for name := range keys {
		if _, ok := seen[name]; !ok && !strings.HasPrefix(name, "container_fs_") && !strings.HasPrefix(name, "container_blkio") {
			t.Errorf("%s is described and never delivered", name)
		}
	}
	if seen["container_spec_memory_limit_bytes"] != 64<<20 || seen["container_fs_usage_bytes"] < 512<<10 || seen["container_processes"] != 1 {
		t.Errorf("limit %d, disk %d, processes %d", seen["container_spec_memory_limit_bytes"], seen["container_fs_usage_bytes"], seen["container_processes"])
	}
	st, err := w.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if st.Stats.Cpu.UsageCoreNanoSeconds.Value == 0 || st.Stats.Memory.WorkingSetBytes.Value == 0 || st.Stats.WritableLayer.UsedBytes.Value == 0 {
		t.Errorf("stats: %v", st.Stats)
	}
}

// What can't be recorded as it is is refused, and its name stays free.
func TestUnrecordable(t *testing.T) {
	w := newWorld(t)
	bad := podConfig(w, "utf8", func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{"a": "\xff"} })
	if _, err := w.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: bad}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a sandbox with a string that isn't UTF-8: %v", err)
	}
	p := w.pod("utf8")
	if _, err := p.create("a", []string{"true"}, func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"a": "\xff"} }); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a container with a string that isn't UTF-8: %v", err)
	}
}
