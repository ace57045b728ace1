package controllers

import (
	"context"
	"fmt"
	"slices"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// A find tells where a controller finds its first work: an object of the
// informer that is so; nil is any.
type find struct {
	informer func(*set) cache.SharedIndexInformer
	so       func(obj any) bool
}

// later is a controller that is made when there is something for it to do. An
// idle one costs a tenth of a megabyte and a dozen goroutines, and most nodes
// never see a use of half of them. It suits those that act on objects of a kind
// only, and know nothing that isn't in the API.
func later(first find, build builder) builder {
	return func(_ context.Context, s *set) (loop, error) {
		informer, found := first.informer(s), make(chan struct{})
		var once sync.Once
		look := func(obj any) {
			if first.so == nil || first.so(obj) {
				once.Do(func() { close(found) })
			}
		}
		handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) }})
		if err != nil {
			return nil, fmt.Errorf("looking for work: %w", err)
		}
		return func(ctx context.Context) {
			select {
			case <-ctx.Done():
				return
			case <-found:
			}
			run, err := s.makeLate(ctx, build)
			if err == nil {
				err = informer.RemoveEventHandler(handle)
			}
			if err != nil {
				s.fail(fmt.Errorf("making a controller that has found work: %w", err))
				return
			}
			if run != nil {
				run(ctx)
			}
		}, nil
	}
}

// makeLate makes one controller, with a gate of its own.
func (s *set) makeLate(ctx context.Context, build builder) (loop, error) {
	own := *s
	own.started = make(chan struct{})
	own.Informers = &gated{s.shared, gate{own.started, ctx.Done()}}
	s.Making.Lock()
	run, err := build(ctx, &own)
	s.Making.Unlock()
	if err == nil {
		own.start(ctx)
	}
	return run, err
}

// Where controllers find their first work. A Job's controller isn't made late:
// it also frees pods of Jobs that are gone.
var (
	replicationControllers = anyOf(func(s *set) cache.SharedIndexInformer {
		return s.Informers.Core().V1().ReplicationControllers().Informer()
	})
	statefulSets = anyOf(func(s *set) cache.SharedIndexInformer { return s.Informers.Apps().V1().StatefulSets().Informer() })
	daemonSets   = anyOf(func(s *set) cache.SharedIndexInformer { return s.Informers.Apps().V1().DaemonSets().Informer() })
	cronJobs     = anyOf(func(s *set) cache.SharedIndexInformer { return s.Informers.Batch().V1().CronJobs().Informer() })
	jobsWithTTL  = find{
		func(s *set) cache.SharedIndexInformer { return s.Informers.Batch().V1().Jobs().Informer() },
		func(obj any) bool { j, ok := obj.(*batchv1.Job); return ok && j.Spec.TTLSecondsAfterFinished != nil },
	}
	mirroredEndpoints = find{
		func(s *set) cache.SharedIndexInformer { return s.Informers.Core().V1().Endpoints().Informer() },
		func(obj any) bool {
			//lint:ignore SA1019 it is what is mirrored
			e, ok := obj.(*v1.Endpoints)
			return ok && e.Labels[discoveryv1.LabelSkipMirror] != "true"
		},
	}
	quotas      = anyOf(func(s *set) cache.SharedIndexInformer { return s.Informers.Core().V1().ResourceQuotas().Informer() })
	autoscalers = anyOf(func(s *set) cache.SharedIndexInformer {
		return s.Informers.Autoscaling().V2().HorizontalPodAutoscalers().Informer()
	})
	tokenSecrets = find{
		func(s *set) cache.SharedIndexInformer { return s.Informers.Core().V1().Secrets().Informer() },
		func(obj any) bool { o, ok := obj.(*v1.Secret); return ok && o.Type == v1.SecretTypeServiceAccountToken },
	}
	certificateRequests = anyOf(func(s *set) cache.SharedIndexInformer {
		return s.Informers.Certificates().V1().CertificateSigningRequests().Informer()
	})
	claims = anyOf(func(s *set) cache.SharedIndexInformer {
		return s.Informers.Core().V1().PersistentVolumeClaims().Informer()
	})
	volumes           = anyOf(func(s *set) cache.SharedIndexInformer { return s.Informers.Core().V1().PersistentVolumes().Informer() })
	attributesClasses = anyOf(func(s *set) cache.SharedIndexInformer {
		return s.Informers.Storage().V1().VolumeAttributesClasses().Informer()
	})
	podsWithClaims = find{
		func(s *set) cache.SharedIndexInformer { return s.Informers.Core().V1().Pods().Informer() },
		func(obj any) bool {
			p, ok := obj.(*v1.Pod)
			return ok && slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool { return v.Ephemeral != nil })
		},
	}
	policies = anyOf(func(s *set) cache.SharedIndexInformer {
		return s.Informers.Admissionregistration().V1().ValidatingAdmissionPolicies().Informer()
	})
)

func anyOf(informer func(*set) cache.SharedIndexInformer) find { return find{informer: informer} }
