package apibench

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"unipod.dev/unipod/internal/bench"
)

// object is a small one: a ConfigMap of 1 KiB.
func object(name string) *v1.ConfigMap {
	value := make([]byte, 1024)
	for i := range value {
		value[i] = 'a' + byte(i%26)
	}
	return &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"key": string(value)}}
}

// requests measures each verb, one request after another.
func (m *measurer) requests(ctx context.Context, f *Figures) error {
	maps := m.client.CoreV1().ConfigMaps(Namespace)
	each := func(into *bench.Times, do func(name string) error) error {
		var all []time.Duration
		for i := range m.opts.Objects {
			at := time.Now()
			if err := do(fmt.Sprintf("serial-%d", i)); err != nil {
				return err
			}
			all = append(all, time.Since(at))
		}
		*into = bench.TimesOf(all)
		return nil
	}
	// The first request opens the connection.
	if _, err := maps.List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return err
	}
	for _, verb := range []struct {
		into *bench.Times
		do   func(string) error
	}{
		{&f.Create, func(name string) error {
			_, err := maps.Create(ctx, object(name), metav1.CreateOptions{})
			return err
		}},
		{&f.Get, func(name string) error {
			_, err := maps.Get(ctx, name, metav1.GetOptions{})
			return err
		}},
		{&f.Update, func(name string) error {
			changed := object(name)
			changed.Data["more"] = "1"
			_, err := maps.Update(ctx, changed, metav1.UpdateOptions{})
			return err
		}},
		{&f.Delete, func(name string) error { return maps.Delete(ctx, name, metav1.DeleteOptions{}) }},
	} {
		if err := each(verb.into, verb.do); err != nil {
			return err
		}
	}
	return nil
}

// watch measures from a creation's start to the event.
func (m *measurer) watch(ctx context.Context, f *Figures) error {
	maps := m.client.CoreV1().ConfigMaps(Namespace)
	w, err := maps.Watch(ctx, metav1.ListOptions{LabelSelector: "watched=yes"})
	if err != nil {
		return err
	}
	defer w.Stop()
	var all []time.Duration
	for i := range m.opts.Objects {
		o := object(fmt.Sprintf("watched-%d", i))
		o.Labels = map[string]string{"watched": "yes"}
		at := time.Now()
		if _, err := maps.Create(ctx, o, metav1.CreateOptions{}); err != nil {
			return err
		}
		for ev := range w.ResultChan() {
			if got, ok := ev.Object.(*v1.ConfigMap); ok && ev.Type == watch.Added && got.Name == o.Name {
				break
			}
		}
		all = append(all, time.Since(at))
	}
	f.Watch = bench.TimesOf(all)
	return ctx.Err()
}

// throughput is what clients get that write at the same time.
func (m *measurer) throughput(ctx context.Context, f *Figures) error {
	maps := m.client.CoreV1().ConfigMaps(Namespace)
	n := m.opts.Objects * 5
	at := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(m.opts.Parallel)
	for i := range n {
		g.Go(func() error {
			_, err := maps.Create(gctx, object(fmt.Sprintf("parallel-%d", i)), metav1.CreateOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	f.CreatesPerSecond = float64(n) / time.Since(at).Seconds()
	return nil
}
