package apibench

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/bench"
)

// podTimeout bounds what is waited for in one measurement.
const podTimeout = 3 * time.Minute

func podSpec(image string) v1.PodSpec {
	return v1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To[int64](0),
		Containers: []v1.Container{{
			Name: "main", Image: image, ImagePullPolicy: v1.PullNever, Command: []string{"sleep", "1000000"},
		}},
	}
}

// pods measures from a pod's creation to a watch that shows it Running.
func (m *measurer) pods(ctx context.Context, f *Figures) error {
	image, err := m.Image(ctx)
	if err != nil || image == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	pods := m.client.CoreV1().Pods(Namespace)
	// A pod can be made once the namespace has its account.
	if err := m.awaitAccount(ctx); err != nil {
		return err
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "app=serial"})
	if err != nil {
		return err
	}
	defer w.Stop()
	await := func(name string, ok func(watch.Event, *v1.Pod) bool) error {
		for ev := range w.ResultChan() {
			if p, is := ev.Object.(*v1.Pod); is && p.Name == name && ok(ev, p) {
				return nil
			}
		}
		return fmt.Errorf("pod %s: %w", name, errors.Join(ctx.Err(), errors.New("the watch ended")))
	}
	var all []time.Duration
	for i := range m.opts.Pods + 1 {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("serial-%d", i), Labels: map[string]string{"app": "serial"}}, Spec: podSpec(image)}
		at := time.Now()
		if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := await(pod.Name, func(_ watch.Event, p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning }); err != nil {
			return err
		}
		if i > 0 { // the first makes what all share
			all = append(all, time.Since(at))
		}
		if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		if err := await(pod.Name, func(ev watch.Event, _ *v1.Pod) bool { return ev.Type == watch.Deleted }); err != nil {
			return err
		}
		if err := m.awaitIdle(ctx); err != nil {
			return err
		}
	}
	f.Running = bench.TimesOf(all)
	return nil
}

func (m *measurer) awaitAccount(ctx context.Context) error {
	for {
		_, err := m.client.CoreV1().ServiceAccounts(Namespace).Get(ctx, "default", metav1.GetOptions{})
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitIdle waits until nothing is left on the node: without a grace period the
// API lets go of a pod at once.
func (m *measurer) awaitIdle(ctx context.Context) error {
	for {
		idle, err := m.Idle()
		if idle || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("pods that are gone from the API are still on the node: %w", ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
}

// deployment measures many pods at a time, from the Deployment's creation to
// the last one's readiness, and from its deletion to the last one's end.
func (m *measurer) deployment(ctx context.Context, f *Figures) error {
	image, err := m.Image(ctx)
	if err != nil || image == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	labels := map[string]string{"app": "many"}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "many"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(int32(m.opts.Replicas)), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podSpec(image)},
		},
	}
	deployments := m.client.AppsV1().Deployments(Namespace)
	w, err := deployments.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	at := time.Now()
	if _, err := deployments.Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return err
	}
	ready := false
	for ev := range w.ResultChan() {
		if now, ok := ev.Object.(*appsv1.Deployment); ok && now.Status.ReadyReplicas == int32(m.opts.Replicas) {
			ready = true
			break
		}
	}
	if !ready {
		return fmt.Errorf("%d replicas never got ready: %w", m.opts.Replicas, context.Cause(ctx))
	}
	f.AllReady = time.Since(at)
	return m.gone(ctx, f, labels)
}

func (m *measurer) gone(ctx context.Context, f *Figures, selected map[string]string) error {
	selector := metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: selected})
	pods := m.client.CoreV1().Pods(Namespace)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return err
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer w.Stop()
	at, left := time.Now(), len(list.Items)
	background := metav1.DeletePropagationBackground
	if err := m.client.AppsV1().Deployments(Namespace).Delete(ctx, "many", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		return err
	}
	for ev := range w.ResultChan() {
		if ev.Type == watch.Deleted {
			left--
		}
		if left == 0 {
			err := m.awaitIdle(ctx)
			f.AllGone = time.Since(at)
			return err
		}
	}
	return fmt.Errorf("%d pods are never gone: %w", left, context.Cause(ctx))
}
