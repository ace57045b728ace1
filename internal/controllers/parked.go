package controllers

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
)

// parked is the client of informers whose kinds come and go. A kind that isn't
// served is waited for: an informer that is told 404 asks again and again, ever
// later, and when the kind is there it is half a minute late. Upstream's
// factory never gives an informer up, so one of a kind that is gone would ask
// as long as the process lives.
type parked struct {
	metadata.Interface
	next func() <-chan struct{} // closed when what is served may be another
}

// Resource implements metadata.Interface.
func (p parked) Resource(kind schema.GroupVersionResource) metadata.Getter {
	return parkedKind{p.Interface.Resource(kind), p.next}
}

type parkedKind struct {
	metadata.Getter
	next func() <-chan struct{}
}

// Namespace implements metadata.Getter.
func (k parkedKind) Namespace(namespace string) metadata.ResourceInterface {
	return parkedReads{k.Getter.Namespace(namespace), k.next}
}

type parkedReads struct {
	metadata.ResourceInterface
	next func() <-chan struct{}
}

// List implements metadata.ResourceInterface.
func (r parkedReads) List(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	return untilServed(ctx, r.next, func() (*metav1.PartialObjectMetadataList, error) { return r.ResourceInterface.List(ctx, o) })
}

// Watch implements metadata.ResourceInterface.
func (r parkedReads) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return untilServed(ctx, r.next, func() (watch.Interface, error) { return r.ResourceInterface.Watch(ctx, o) })
}

func untilServed[T any](ctx context.Context, next func() <-chan struct{}, ask func() (T, error)) (T, error) {
	for {
		changed := next() // before asking: a change in between isn't missed
		answer, err := ask()
		if !apierrors.IsNotFound(err) {
			return answer, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return answer, context.Cause(ctx)
		}
	}
}
