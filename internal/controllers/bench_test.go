package controllers_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// settle is for what follows an object that is gone, events above all.
const settle = 50 * time.Millisecond

// A pace is when the pods of a watch reached a state.
type pace struct {
	s      *space
	events watch.Interface
}

func (s *space) pace() *pace {
	s.Helper()
	w, err := s.CoreV1().Pods(s.ns).Watch(s.ctx, metav1.ListOptions{})
	s.must(err)
	s.Cleanup(w.Stop)
	return &pace{s, w}
}

// after waits until n pods are in a state and returns how long that took.
func (p *pace) after(start time.Time, n int, is func(*v1.Pod) bool) time.Duration {
	seen := map[string]bool{}
	for e := range p.events.ResultChan() {
		if pod, ok := e.Object.(*v1.Pod); ok && e.Type != watch.Deleted && is(pod) {
			if seen[pod.Name] = true; len(seen) == n {
				return time.Since(start)
			}
		}
	}
	p.s.Fatal("the watch ended")
	return 0
}

func report(b *testing.B, took []time.Duration, goal time.Duration) {
	slices.Sort(took)
	p50 := took[len(took)/2]
	b.ReportMetric(float64(took[0].Microseconds())/1000, "ms-min")
	b.ReportMetric(float64(p50.Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*9/10].Microseconds())/1000, "ms-p90")
	b.ReportMetric(float64(p50)/float64(goal), "of-goal")
}

// BenchmarkBind is a pod from its creation to being bound. Its goal is what is
// left of 30 ms from apply to running for the scheduler.
func BenchmarkBind(b *testing.B) {
	s := newSpace(b)
	p := s.pace()
	var took []time.Duration
	for i := range b.N {
		t := template(nil, func(p *v1.PodTemplateSpec) { p.Annotations[holds] = "" })
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Annotations: t.Annotations}, Spec: t.Spec}
		start := time.Now()
		_, err := s.CoreV1().Pods(s.ns).Create(s.ctx, pod, metav1.CreateOptions{})
		s.must(err)
		took = append(took, p.after(start, 1, func(p *v1.Pod) bool { return p.Spec.NodeName != "" && p.Name == pod.Name }))
		s.must(s.CoreV1().Pods(s.ns).Delete(s.ctx, pod.Name, metav1.DeleteOptions{}))
		time.Sleep(settle)
	}
	report(b, took, 5*time.Millisecond)
}

func benchmarkDeployment(b *testing.B, replicas int, goal time.Duration, is func(*v1.Pod) bool) {
	s := newSpace(b)
	p := s.pace()
	var took []time.Duration
	for i := range b.N {
		name, n := fmt.Sprintf("d%d", i), int32(replicas)
		t := template(app(name), func(p *v1.PodTemplateSpec) { p.Annotations[holds] = "" })
		start := time.Now()
		_, err := s.AppsV1().Deployments(s.ns).Create(s.ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: selector(name), Template: t}}, metav1.CreateOptions{})
		s.must(err)
		took = append(took, p.after(start, replicas, func(pod *v1.Pod) bool { return pod.Labels["app"] == name && is(pod) }))
		background := metav1.DeletePropagationBackground
		s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, name, metav1.DeleteOptions{PropagationPolicy: &background}))
		s.until("its pods go", func() bool { return len(s.pods()) == 0 })
		time.Sleep(settle)
	}
	report(b, took, goal)
}

// BenchmarkDeployment3 is a Deployment of 3 from its creation to 3 Pod objects.
func BenchmarkDeployment3(b *testing.B) {
	benchmarkDeployment(b, 3, 11*time.Millisecond, func(*v1.Pod) bool { return true })
}

// BenchmarkDeployment50 is a Deployment of 50 from its creation to all bound.
// Its goal is a quarter of the 2 s in which all are to be Ready.
func BenchmarkDeployment50(b *testing.B) {
	benchmarkDeployment(b, 50, 500*time.Millisecond, func(p *v1.Pod) bool { return p.Spec.NodeName != "" })
}
