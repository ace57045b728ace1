package runtime

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkRelist is what a kubelet asks for again and again, on 250 pods of
// one and of four containers: the relisting of its PLEG (goal: 20 ms) and the statistics
// of its summary (goal: 100 ms).
func BenchmarkRelist(b *testing.B) {
	const pods, each, parallel = 250, 4, 8
	w := newWorld(b)
	ctx := context.Background()
	made := make([]*pod, pods)
	eachPod := func(do func(i int) error) {
		next := make(chan int)
		var workers sync.WaitGroup
		for range parallel {
			workers.Go(func() {
				for i := range next {
					if err := do(i); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for i := range pods {
			next <- i
		}
		close(next)
		workers.Wait()
	}
	start := func(i int) error {
		id, err := made[i].create("c", []string{"sleep", "1000"})
		if err == nil {
			_, err = w.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		}
		return err
	}
	stats := func(b *testing.B) {
		before := cpuTime(b)
		defer func() { b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms/op") }()
		for b.Loop() {
			s, err := w.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			if err != nil || len(s.Stats) != pods {
				b.Fatalf("%d sandboxes, %v", len(s.GetStats()), err)
			}
		}
		b.ReportMetric(100, "goal-ms")
	}
	eachPod(func(i int) error {
		c := podConfig(w, fmt.Sprintf("p%d", i))
		s, err := w.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
		if err != nil {
			return err
		}
		made[i] = &pod{w: w, id: s.PodSandboxId, config: c}
		return start(i)
	})
	if b.Failed() {
		return
	}
	b.Run("stats/containers=1", stats)
	for range each - 1 {
		eachPod(start)
	}
	b.Run("stats/containers=4", stats)
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			s, err := w.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			if err != nil || len(s.Items) != pods {
				b.Fatalf("%d sandboxes, %v", len(s.GetItems()), err)
			}
			c, err := w.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			if err != nil || len(c.Containers) != pods*each {
				b.Fatalf("%d containers, %v", len(c.GetContainers()), err)
			}
		}
		b.ReportMetric(20, "goal-ms")
	})
	b.Run("status", func(b *testing.B) { // one pod's, as after each event
		id := w.allSandboxes()[0].id
		for b.Loop() {
			if _, err := w.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// cpuTime is what this process has used so far: what a busy machine doesn't
// distort.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
