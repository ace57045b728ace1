package controllers

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/metadata/metadatainformer"
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
		s, err := newServed(api, objects, func() { forgot.Add(1) })
		if err != nil {
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
		time.Sleep(settling / 2)
		if n := ask(3); n != 3 {
			t.Errorf("unsettled, 3 questions asked the API %d times", n)
		}
		time.Sleep(settling)
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
		time.Sleep(2 * settling)
		if n := ask(2); n != 2 {
			t.Errorf("a partial answer was remembered")
		}
	})
}
