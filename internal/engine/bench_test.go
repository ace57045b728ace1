package engine

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri/fakecri"
)

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchEngine(b *testing.B) (*Engine, *fakecri.Runtime) {
	b.Helper()
	rt := fakecri.New(clock.RealClock{})
	dir := b.TempDir()
	e, err := New(Config{CRI: rt, Dir: filepath.Join(dir, "pods"), LogDir: filepath.Join(dir, "logs"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = e.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done; rt.Close() })
	return e, rt
}

func awaitRunning(b *testing.B, e *Engine, uid types.UID) {
	b.Helper()
	for range 100000 {
		if p, ok := e.Get(uid); ok && p.Status.Phase == v1.PodRunning {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
	b.Fatalf("%s does not run", uid)
}

// BenchmarkIdle is the engine's CPU time while 200 pods run and nothing
// happens, with and without an exec probe every ten seconds each. The goal is
// less than 1 % of a core.
func BenchmarkIdle(b *testing.B) {
	for _, probed := range []bool{false, true} {
		b.Run(fmt.Sprintf("probed=%v", probed), func(b *testing.B) {
			e, _ := benchEngine(b)
			for i := range 200 {
				c := container("app")
				if probed {
					c.ReadinessProbe = &v1.Probe{PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
						ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}}}
				}
				if err := e.Apply(newPod(fmt.Sprintf("p%d", i), c), FromAPI()); err != nil {
					b.Fatal(err)
				}
			}
			for i := range 200 {
				awaitRunning(b, e, types.UID(fmt.Sprintf("uid-p%d", i)))
			}
			const window = 20 * time.Second
			for b.Loop() {
				before := cpu(b)
				time.Sleep(window)
				b.ReportMetric(100*float64(cpu(b)-before)/float64(window), "%core")
			}
		})
	}
}

// BenchmarkStart is the engine's own share of a pod's start: from Apply to
// Running on a runtime that takes no time.
func BenchmarkStart(b *testing.B) {
	e, rt := benchEngine(b)
	rt.AddImage("registry.test/app:1")
	n := 0
	for b.Loop() {
		n++
		pod := newPod(fmt.Sprintf("p%d", n), container("app"))
		if err := e.Apply(pod, FromAPI()); err != nil {
			b.Fatal(err)
		}
		awaitRunning(b, e, pod.UID)
		b.StopTimer()
		zero := time.Duration(0)
		e.Delete(pod.UID, &zero)
		for len(e.List()) > 0 {
			time.Sleep(100 * time.Microsecond)
		}
		b.StartTimer()
	}
}
