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

// settling is when, after a change of CustomResourceDefinitions or APIServices,
// it is looked again: the API's discovery is rebuilt by controllers of its own.
// After the last discovery is believed to tell the new.
var settling = []time.Duration{250 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second}

// served remembers which resources the API serves. Upstream asks every half
// minute, in two controllers; they are only ever changed by two kinds of
// objects, so those are watched instead. Safe for concurrent use.
type served struct {
	discovery.ServerResourcesInterface
	changed chan struct{}
	forget  func() // what others remember

	mu        sync.Mutex
	unsettled bool          // discovery may be older than the change
	turn      chan struct{} // closed when it may be another
	all       []*metav1.APIResourceList
	ofNames   []*metav1.APIResourceList
}

func newServed(api discovery.ServerResourcesInterface, forget func()) *served {
	return &served{ServerResourcesInterface: api, changed: make(chan struct{}, 1), forget: forget, unsettled: true, turn: make(chan struct{})}
}

// watch learns of changes from what defines resources.
func (s *served) watch(objects metadatainformer.SharedInformerFactory) error {
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
		_, err := s.ServerResourcesForGroupVersion(kind.GroupVersion().String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("asking the API whether it serves %s: %w", kind.Resource, err)
		}
		_, err = objects.ForResource(kind).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { note() },
			UpdateFunc: func(any, any) { note() },
			DeleteFunc: func(any) { note() },
		})
		if err != nil {
			return fmt.Errorf("watching %s: %w", kind.Resource, err)
		}
	}
	return nil
}

// run forgets what is remembered as soon as a change is seen, and again until
// discovery must have followed.
func (s *served) run(ctx context.Context) {
	last := len(settling) - 1
	look := last // which of settling is next
	timer := time.NewTimer(settling[look])
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.changed:
			s.stale(true)
			look = 0
			timer.Reset(settling[0])
		case <-timer.C:
			s.stale(look < last)
			if look++; look <= last {
				timer.Reset(settling[look] - settling[look-1])
			}
		}
	}
}

// stale forgets; while unsettled nothing is remembered.
func (s *served) stale(unsettled bool) {
	s.mu.Lock()
	s.unsettled, s.all, s.ofNames = unsettled, nil, nil
	turn := s.turn
	s.turn = make(chan struct{})
	s.mu.Unlock()
	s.forget()
	close(turn)
}

// next is closed when what is served may be another than now.
func (s *served) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turn
}

// follow runs a loop of upstream's that compares what is served with what it
// watches, now and then. It is begun anew when that may have changed: an object
// of a new kind, deleted in the foreground, would else wait for the time to be up.
func (s *served) follow(ctx context.Context, compare func(context.Context)) {
	for ctx.Err() == nil {
		until(ctx, s.next(), compare)
	}
}

// until runs a loop until something happens, or ctx ends, and not longer.
func until(ctx context.Context, happens <-chan struct{}, run func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-happens:
			cancel()
		case <-ctx.Done():
		}
	})
	run(ctx)
	waiting.Wait()
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
