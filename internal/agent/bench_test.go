package agent

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*9/10].Microseconds())/1000, "p90-ms")
}

// BenchmarkAround is what the agent, the engine and the API add to a runtime
// that takes no time: from a bound pod's create to Ready in a watch.
func BenchmarkAround(b *testing.B) {
	l := newLab(b, nil)
	ctx := b.Context()
	pods := api.CoreV1().Pods(l.ns)
	w, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Stop()
	var took []time.Duration
	i := 0
	for b.Loop() {
		name := fmt.Sprintf("pod-%d", i)
		i++
		begin := time.Now()
		l.pod(name, nil)
		for ev := range w.ResultChan() {
			if p, ok := ev.Object.(*v1.Pod); ok && p.Name == name && isReady(p) {
				break
			}
		}
		took = append(took, time.Since(begin))
	}
	percentiles(b, took)
}

// BenchmarkStatus is a status' way: from the container's end in the runtime to
// its pod's new status in a watch.
func BenchmarkStatus(b *testing.B) {
	l := newLab(b, nil)
	pods := api.CoreV1().Pods(l.ns)
	w, err := pods.Watch(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Stop()
	var took []time.Duration
	i := 0
	for b.Loop() {
		b.StopTimer()
		name := fmt.Sprintf("pod-%d", i)
		i++
		l.pod(name, func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })
		pod := l.await(name, "ready", isReady)
		b.StartTimer()
		begin := time.Now()
		l.engine.Delete(pod.UID, new(time.Duration))
		for ev := range w.ResultChan() {
			if p, ok := ev.Object.(*v1.Pod); ok && p.Name == name && p.Status.Phase == v1.PodFailed {
				break
			}
		}
		took = append(took, time.Since(begin))
	}
	percentiles(b, took)
}

// BenchmarkIdle is the CPU that 200 pods cost at rest, API included, in
// thousandths of one processor.
func BenchmarkIdle(b *testing.B) {
	l := newLab(b, nil)
	for i := range 200 {
		l.pod(fmt.Sprintf("pod-%d", i), nil)
	}
	for i := range 200 {
		l.await(fmt.Sprintf("pod-%d", i), "ready", isReady)
	}
	time.Sleep(2 * time.Second) // the last Events are written
	before := cpu(b)
	n := 0
	for b.Loop() {
		time.Sleep(time.Second)
		n++
	}
	b.ReportMetric(float64((cpu(b)-before).Milliseconds())/float64(n), "mCPU")
	if err := api.CoreV1().Pods(l.ns).DeleteCollection(context.Background(), metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{}); err != nil {
		b.Error(err)
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
