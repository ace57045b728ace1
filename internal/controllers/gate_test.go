package controllers

import (
	"context"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
)

// A handler that is added to informers that run is not called before the gate
// is open, and then told everything.
func TestGate(t *testing.T) {
	ctx := t.Context()
	shared := informers.NewSharedInformerFactory(fake.NewClientset(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}), 0)
	shared.Core().V1().Pods().Informer()
	shared.StartWithContext(ctx)
	shared.WaitForCacheSyncWithContext(ctx)

	open, ended, told := make(chan struct{}), make(chan struct{}), make(chan bool, 1)
	pods := (&gated{shared, gate{open, ended}}).Core().V1().Pods()
	ready := false // as a controller's listers are, in the end
	if _, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { told <- ready }}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Lister().Pods("default").Get("p"); err != nil {
		t.Errorf("the lister is not the shared one: %v", err)
	}
	ready = true
	close(open)
	if !<-told {
		t.Error("called before the gate was open")
	}
}

// What ends before its gate was open lets go of the informers.
func TestGateThatStaysShut(t *testing.T) {
	shared := informers.NewSharedInformerFactory(fake.NewClientset(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}), 0)
	ctx, cancel := context.WithCancel(t.Context())
	pods := (&gated{shared, gate{nil, ctx.Done()}}).Core().V1().Pods()
	if _, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { t.Error("called behind a shut gate") }}); err != nil {
		t.Fatal(err)
	}
	shared.StartWithContext(ctx)
	shared.WaitForCacheSyncWithContext(ctx)
	cancel()
	shared.Shutdown() // would wait for ever
}
