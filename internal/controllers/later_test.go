package controllers

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/utils/ptr"
)

// lateSet is what controllers are made of, over an API with some objects.
func lateSet(t *testing.T, client *fake.Clientset) (s *set, ctx context.Context) {
	ctx, fail := context.WithCancelCause(t.Context())
	none, err := metadata.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	s = &set{Config: Config{Making: &sync.Mutex{}, Log: slog.New(slog.DiscardHandler)}, shared: shared, started: make(chan struct{}), fail: fail,
		objects: informerfactory.NewInformerFactory(shared, metadatainformer.NewSharedInformerFactory(none, 0))}
	s.Informers = &gated{shared, gate{s.started, ctx.Done()}}
	t.Cleanup(func() {
		fail(nil)
		shared.Shutdown()
	})
	return s, ctx
}

// A controller is made when its first work is there, not before, and is told
// of all there is.
func TestLater(t *testing.T) {
	job := func(name string, ttl *int32) *batchv1.Job {
		return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: batchv1.JobSpec{TTLSecondsAfterFinished: ttl}}
	}
	client := fake.NewClientset(job("stays", nil))
	s, ctx := lateSet(t, client)
	made, told := make(chan struct{}), make(chan string, 2)
	loop, err := later(jobsWithTTL, func(_ context.Context, s *set) (loop, error) {
		close(made)
		_, err := s.Informers.Batch().V1().Jobs().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { told <- obj.(*batchv1.Job).Name },
		})
		return func(ctx context.Context) { <-ctx.Done() }, err
	})(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	s.start(ctx)
	ended := make(chan struct{})
	go func() { loop(ctx); close(ended) }()
	if _, err := client.BatchV1().Jobs("default").Create(ctx, job("goes", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	known := s.shared.Batch().V1().Jobs().Lister().Jobs("default")
	for {
		if _, err := known.Get("goes"); err == nil {
			break
		}
	}
	select {
	case <-made:
		t.Fatal("made without work")
	default:
	}
	if _, err := client.BatchV1().Jobs("default").Update(ctx, job("goes", ptr.To[int32](1)), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-made
	if a, b := <-told, <-told; a == b {
		t.Errorf("told of %s twice", a)
	}
	s.fail(nil)
	<-ended
}

// One that can't be made ends all, and says so.
func TestLaterFails(t *testing.T) {
	s, ctx := lateSet(t, fake.NewClientset(&batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}}))
	broken := errors.New("broken")
	loop, err := later(cronJobs, func(context.Context, *set) (loop, error) { return nil, broken })(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	s.start(ctx)
	loop(ctx)
	if cause := context.Cause(ctx); !errors.Is(cause, broken) {
		t.Errorf("the others end for %v, want %v", cause, broken)
	}
}
