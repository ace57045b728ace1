package cgroup

import (
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
)

// BenchmarkPodAndContainer makes the groups of a pod with one container. Its
// peer is the library's manager, which runc makes a container's group with.
func BenchmarkPodAndContainer(b *testing.B) {
	h := open(b)
	var ours time.Duration
	for b.Loop() {
		start := time.Now()
		pod := makePod(b, h, Resources{})
		makeContainer(b, pod, "c", Resources{CPUShares: 512, Memory: 64 << 20, MemorySwap: 64 << 20})
		ours += time.Since(start)
		b.StopTimer()
		if err := pod.Remove(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	const rounds = 20
	var theirs time.Duration
	for range rounds {
		var made []cgroups.Manager
		start := time.Now()
		for _, path := range []string{h.root + "/peer", h.root + "/peer/c"} {
			r := &cgroups.Resources{CpuShares: 512, CpuWeight: 59, Memory: 64 << 20, SkipDevices: true}
			m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: r})
			if err != nil {
				b.Fatal(err)
			}
			if err := m.Apply(-1); err != nil {
				b.Fatal(err)
			}
			made = append(made, m)
			if err := m.Set(r); err != nil {
				b.Fatal(err)
			}
		}
		theirs += time.Since(start)
		for i := len(made) - 1; i >= 0; i-- {
			if err := made[i].Destroy(); err != nil {
				b.Fatal(err)
			}
		}
	}
	peer := float64(theirs.Nanoseconds()) / rounds
	b.ReportMetric(peer, "library-ns/op")
	b.ReportMetric(peer*float64(b.N)/float64(ours.Nanoseconds()), "x-faster")
}

// BenchmarkStats measures a group; its peer is the library's Stats of the
// same controllers.
func BenchmarkStats(b *testing.B) {
	h := open(b)
	pod := makePod(b, h, Resources{})
	var ours time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := pod.Stats(); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
	}
	m, err := manager.New(&cgroups.Cgroup{Path: pod.Path(), Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		b.Fatal(err)
	}
	const rounds = 200
	start := time.Now()
	for range rounds {
		if _, err := m.Stats(&cgroups.StatsOptions{Controllers: cgroups.CPU | cgroups.Memory | cgroups.Pids}); err != nil {
			b.Fatal(err)
		}
	}
	peer := float64(time.Since(start).Nanoseconds()) / rounds
	b.ReportMetric(peer, "library-ns/op")
	b.ReportMetric(peer*float64(b.N)/float64(ours.Nanoseconds()), "x-faster")
}
