package apiserver

import (
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// TestFlood: many writers at once all succeed, and every watch tells all of it,
// once.
func TestFlood(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	k := clients(t, w.Loopback())
	const writers, each = 32, 20
	var group errgroup.Group
	for i := range writers {
		group.Go(func() error {
			for j := range each {
				cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c-%d-%d", i, j)}}
				if _, err := k.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	// Every watch sees every object once, in the order of the store.
	const watches = 50
	var seen sync.WaitGroup
	for range watches {
		events, err := k.CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			t.Fatal(err)
		}
		seen.Go(func() {
			defer events.Stop()
			names, last := map[string]bool{}, ""
			for e := range events.ResultChan() {
				m, ok := e.Object.(*corev1.ConfigMap)
				if !ok || e.Type != watch.Added || names[m.Name] {
					t.Errorf("%v after %d", e, len(names))
					return
				}
				names[m.Name], last = true, m.ResourceVersion
				if len(names) == writers*each {
					return
				}
			}
			t.Errorf("a watch ended after %d, at %s", len(names), last)
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	seen.Wait()
}

// TestSlowReader: who asks for much and reads nothing holds neither the others
// nor memory, and is gone when it goes.
func TestSlowReader(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	k := clients(t, w.Loopback())
	slow, err := k.CoreV1().RESTClient().Get().Namespace(ns).Resource("configmaps").Param("watch", "true").Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	for i := range 30 {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}, BinaryData: map[string][]byte{"b": make([]byte, 200<<10)}}
		if _, err := k.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := k.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{Limit: 5}); err != nil || len(l.Items) != 5 {
		t.Errorf("%v", err)
	}
}
