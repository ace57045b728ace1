package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
)

// settling is how long after a change of CustomResourceDefinitions or
// APIServices the API's discovery may still tell the old: it is rebuilt by
// controllers of its own.
const settling = 10 * time.Second

// served remembers which resources the API serves. Upstream asks every half
// minute, in two controllers; they are only ever changed by two kinds of
// objects, so those are watched instead. Safe for concurrent use.
type served struct {
	discovery.ServerResourcesInterface
	changed chan struct{}
	forget  func() // what others remember

	mu        sync.Mutex
	unsettled bool // discovery may be older than the change
	all       []*metav1.APIResourceList
	ofNames   []*metav1.APIResourceList
}

func newServed(api discovery.ServerResourcesInterface, objects metadatainformer.SharedInformerFactory, forget func()) (*served, error) {
	s := &served{ServerResourcesInterface: api, changed: make(chan struct{}, 1), forget: forget, unsettled: true}
	note := func() {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
	for _, kind := range []schema.GroupVersionResource{
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
		{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
	} {
		_, err := api.ServerResourcesForGroupVersion(kind.GroupVersion().String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking the API whether it serves %s: %w", kind.Resource, err)
		}
		_, err = objects.ForResource(kind).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { note() },
			UpdateFunc: func(any, any) { note() },
			DeleteFunc: func(any) { note() },
		})
		if err != nil {
			return nil, fmt.Errorf("watching %s: %w", kind.Resource, err)
		}
	}
	return s, nil
}

// run forgets what is remembered as soon as a change is seen, and once more
// when discovery must have followed.
func (s *served) run(ctx context.Context) {
	settled := time.NewTimer(settling)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
			s.stale(true)
			settled.Reset(settling)
		case <-settled.C:
			s.stale(false)
		}
	}
}

// stale forgets; while unsettled nothing is remembered.
func (s *served) stale(unsettled bool) {
	s.mu.Lock()
	s.unsettled, s.all, s.ofNames = unsettled, nil, nil
	s.mu.Unlock()
	s.forget()
}

// ServerPreferredResources implements discovery.ServerResourcesInterface.
func (s *served) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	return s.remember(&s.all, s.ServerResourcesInterface.ServerPreferredResources)
}

// ServerPreferredNamespacedResources implements discovery.ServerResourcesInterface.
func (s *served) ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error) {
	return s.remember(&s.ofNames, s.ServerResourcesInterface.ServerPreferredNamespacedResources)
}

func (s *served) remember(known *[]*metav1.APIResourceList, ask func() ([]*metav1.APIResourceList, error)) ([]*metav1.APIResourceList, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *known != nil {
		return *known, nil
	}
	lists, err := ask()
	if err == nil && !s.unsettled {
		*known = lists
	}
	return lists, err
}
