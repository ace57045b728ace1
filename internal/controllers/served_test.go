package controllers

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/metadata/metadatainformer"
	clienttesting "k8s.io/client-go/testing"
)

type countingAPI struct {
	discovery.ServerResourcesInterface
	asked int
	err   error
}

func (c *countingAPI) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	c.asked++
	return []*metav1.APIResourceList{{GroupVersion: "v1"}}, c.err
}

func (c *countingAPI) ServerResourcesForGroupVersion(gv string) (*metav1.APIResourceList, error) {
	if gv != "apiextensions.k8s.io/v1" {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, gv)
	}
	return &metav1.APIResourceList{GroupVersion: gv}, nil
}

// The API is asked while something has just changed, and not again after.
func TestServed(t *testing.T) {
	crd := func(name string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
			ObjectMeta: metav1.ObjectMeta{Name: name},
		}
	}
	synctest.Test(t, func(t *testing.T) {
		scheme := fake.NewTestScheme()
		if err := metav1.AddMetaToScheme(scheme); err != nil {
			t.Fatal(err)
		}
		client := fake.NewSimpleMetadataClient(scheme, crd("a"))
		objects := metadatainformer.NewSharedInformerFactory(client, 0)
		api := &countingAPI{}
		var forgot atomic.Int64
		s := newServed(api, func() { forgot.Add(1) })
		if err := s.watch(objects); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go s.run(ctx)
		objects.Start(ctx.Done())
		defer func() { cancel(); objects.Shutdown() }()

		ask := func(times int) int {
			before := api.asked
			for range times {
				if lists, err := s.ServerPreferredResources(); len(lists) != 1 || err != api.err {
					t.Fatal(lists, err)
				}
			}
			return api.asked - before
		}
		settled := settling[len(settling)-1]
		time.Sleep(settled / 2)
		if n := ask(3); n != 3 {
			t.Errorf("unsettled, 3 questions asked the API %d times", n)
		}
		time.Sleep(settled)
		if n := ask(3); n != 1 {
			t.Errorf("settled, 3 questions asked the API %d times", n)
		}
		known := forgot.Load()
		gvr := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
		if err := client.Tracker().Create(gvr, crd("b"), ""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := ask(2); n != 2 || forgot.Load() != known+1 {
			t.Errorf("after a change, 2 questions asked the API %d times; forgot %d times", n, forgot.Load()-known)
		}
		api.err = errors.New("a group is down")
		time.Sleep(2 * settled)
		if n := ask(2); n != 2 {
			t.Errorf("a partial answer was remembered")
		}
	})
}

// A loop is begun anew when a kind comes, and once discovery must tell of it.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServed(&countingAPI{}, func() {})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.run(ctx) })
		var looks []time.Duration
		begin := time.Now()
		running.Go(func() {
			s.follow(ctx, func(ctx context.Context) {
				looks = append(looks, time.Since(begin))
				<-ctx.Done()
			})
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		looks, begin = nil, time.Now()
		s.changed <- struct{}{}
		time.Sleep(time.Hour)
		cancel()
		running.Wait()
		if want := append([]time.Duration{0}, settling...); !slices.Equal(looks, want) {
			t.Errorf("looked %s after the change, want %s", looks, want)
		}
	})
}

// Who reads a kind that isn't served is told when it is, and of nothing before;
// other errors aren't waited for.
func TestParked(t *testing.T) {
	gvr := schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}
	synctest.Test(t, func(t *testing.T) {
		scheme := fake.NewTestScheme()
		if err := metav1.AddMetaToScheme(scheme); err != nil {
			t.Fatal(err)
		}
		client := fake.NewSimpleMetadataClient(scheme)
		answer := error(apierrors.NewNotFound(gvr.GroupResource(), ""))
		asked := 0
		client.PrependReactor("list", "widgets", func(clienttesting.Action) (bool, runtime.Object, error) {
			asked++
			if answer != nil {
				return true, nil, answer
			}
			return true, &metav1.List{}, nil
		})
		client.PrependWatchReactor("widgets", func(clienttesting.Action) (bool, watch.Interface, error) {
			asked++
			return true, watch.NewFake(), answer
		})
		s := newServed(&countingAPI{}, func() {})
		widgets := parked{client, s.next}.Resource(gvr).Namespace("")
		for what, ask := range map[string]func(context.Context) error{
			"list":  func(ctx context.Context) error { _, err := widgets.List(ctx, metav1.ListOptions{}); return err },
			"watch": func(ctx context.Context) error { _, err := widgets.Watch(ctx, metav1.ListOptions{}); return err },
		} {
			answer, asked = apierrors.NewNotFound(gvr.GroupResource(), ""), 0
			told := make(chan error, 1)
			go func() { told <- ask(t.Context()) }()
			time.Sleep(time.Hour)
			synctest.Wait()
			if asked != 1 || len(told) != 0 {
				t.Errorf("%s: asked %d times, told %d", what, asked, len(told))
			}
			s.stale(true) // of another kind
			synctest.Wait()
			if asked != 2 || len(told) != 0 {
				t.Errorf("%s: asked %d times, told %d", what, asked, len(told))
			}
			answer = nil
			s.stale(false)
			if err := <-told; err != nil {
				t.Errorf("%s: %v", what, err)
			}
			answer = apierrors.NewForbidden(gvr.GroupResource(), "", errors.New("no"))
			if err := ask(t.Context()); !apierrors.IsForbidden(err) {
				t.Errorf("%s: %v", what, err)
			}
			answer = apierrors.NewNotFound(gvr.GroupResource(), "")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", what, err)
			}
			cancel()
		}
	})
}
