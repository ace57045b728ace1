package runtime

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkPod is a pod's life phase by phase: the peer's figures and the
// floor are in the benchmarks of the whole binary (make bench).
func BenchmarkPod(b *testing.B) {
	w := newWorld(b)
	ctx := context.Background()
	var phases [5]time.Duration
	var last time.Time
	lap := func(i int) {
		now := time.Now()
		phases[i] += now.Sub(last)
		last = now
	}
	n := 0
	for b.Loop() {
		c := podConfig(w, fmt.Sprintf("p%d", n))
		n++
		last = time.Now()
		s, err := w.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
		if err != nil {
			b.Fatal(err)
		}
		lap(0)
		p := &pod{w: w, id: s.PodSandboxId, config: c}
		id, err := p.create("a", []string{"sleep", "1000"})
		if err != nil {
			b.Fatal(err)
		}
		lap(1)
		if _, err := w.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		lap(2)
		if _, err := w.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); err != nil {
			b.Fatal(err)
		}
		lap(3)
		if _, err := w.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			b.Fatal(err)
		}
		lap(4)
	}
	for i, name := range []string{"sandbox", "create", "start", "exec", "stop"} {
		b.ReportMetric(float64(phases[i].Microseconds())/1000/float64(n), name+"-ms")
	}
}

// BenchmarkPodsParallel starts pods eight at a time.
func BenchmarkPodsParallel(b *testing.B) {
	w := newWorld(b)
	ctx := context.Background()
	b.SetParallelism(4)
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c := podConfig(w, fmt.Sprintf("p%d", n.Add(1)))
			s, err := w.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
			if err != nil {
				b.Error(err)
				return
			}
			p := &pod{w: w, id: s.PodSandboxId, config: c}
			id, err := p.create("a", []string{"sleep", "1000"})
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := w.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
	b.StopTimer()
}

// BenchmarkExec runs true in a container, one after the other.
func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	p := w.pod("exec")
	id := p.start("a", []string{"sleep", "1000"})
	for b.Loop() {
		if _, err := w.ExecSync(b.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); err != nil {
			b.Fatal(err)
		}
	}
}
