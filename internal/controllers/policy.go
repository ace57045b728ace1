package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/scale"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	"k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	resourceclient "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
)

// What follows is upstream's default.
const (
	quotaResync = 5 * time.Minute

	scaleEvery        = 15 * time.Second
	scaleDownWindow   = 5 * time.Minute
	scaleTolerance    = 0.1
	scaleStartup      = 5 * time.Minute
	scaleInitialReady = 30 * time.Second
)

// scales is a client of the scale subresource of any kind.
func (s *set) scales() (scale.ScalesGetter, error) {
	c, err := scale.NewForConfig(s.config, s.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(s.client.Discovery()))
	if err != nil {
		return nil, fmt.Errorf("a client for scales: %w", err)
	}
	return c, nil
}

func newDisruption(ctx context.Context, s *set) (loop, error) {
	scales, err := s.scales()
	if err != nil {
		return nil, err
	}
	core, apps := s.Informers.Core().V1(), s.Informers.Apps().V1()
	c := disruption.NewDisruptionController(ctx, core.Pods(), s.Informers.Policy().V1().PodDisruptionBudgets(), core.ReplicationControllers(),
		apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), s.client, s.mapper, scales, s.client.Discovery())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newResourceQuota(ctx context.Context, s *set) (loop, error) {
	quotas, err := quotainstall.NewQuotaConfigurationForControllers(generic.ListerFuncForResourceFunc(s.Informers.ForResource), s.Informers)
	if err != nil {
		return nil, err
	}
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               s.client.CoreV1(),
		ResourceQuotaInformer:     s.Informers.Core().V1().ResourceQuotas(),
		ResyncPeriod:              controller.StaticResyncPeriodFunc(quotaResync),
		InformerFactory:           s.objects,
		ReplenishmentResyncPeriod: controller.StaticResyncPeriodFunc(resync),
		DiscoveryFunc:             s.served.ServerPreferredNamespacedResources,
		IgnoredResourcesFunc:      quotas.IgnoredResources,
		InformersStarted:          s.started,
		Registry:                  generic.NewRegistry(quotas.Evaluators()),
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	})
	if err != nil {
		return nil, err
	}
	return together(
		func(ctx context.Context) { c.Run(ctx, workers) },
		func(ctx context.Context) {
			s.served.follow(ctx, func(ctx context.Context) { c.Sync(ctx, s.served.ServerPreferredNamespacedResources, lookAgain) })
		},
	), nil
}

func newHorizontalPodAutoscaler(ctx context.Context, s *set) (loop, error) {
	scales, err := s.scales()
	if err != nil {
		return nil, err
	}
	resources, err := resourceclient.NewForConfig(s.config)
	if err != nil {
		return nil, fmt.Errorf("a client for metrics.k8s.io: %w", err)
	}
	external, err := external_metrics.NewForConfig(s.config)
	if err != nil {
		return nil, fmt.Errorf("a client for external.metrics.k8s.io: %w", err)
	}
	versions := custom_metrics.NewAvailableAPIsGetter(s.client.Discovery())
	c := podautoscaler.NewHorizontalController(ctx, s.client.CoreV1(), scales, s.client.AutoscalingV2(), s.mapper,
		metrics.NewRESTMetricsClient(resources, custom_metrics.NewForConfig(s.config, s.mapper, versions), external),
		s.Informers.Autoscaling().V2().HorizontalPodAutoscalers(), s.Informers.Core().V1().Pods(),
		scaleEvery, scaleDownWindow, scaleTolerance, scaleStartup, scaleInitialReady)
	return together(
		func(ctx context.Context) { c.Run(ctx, workers) },
		func(ctx context.Context) { custom_metrics.PeriodicallyInvalidate(versions, scaleEvery, ctx.Done()) },
	), nil
}

func newPolicyStatus(_ context.Context, s *set) (loop, error) {
	// Upstream knows the built-in types by their Go definitions, 46 MB of them;
	// the API tells the same on demand.
	checker := &validating.TypeChecker{
		SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: s.client.Discovery()},
		RestMapper:     s.mapper,
	}
	c, err := validatingadmissionpolicystatus.NewController(s.Informers.Admissionregistration().V1().ValidatingAdmissionPolicies(),
		s.client.AdmissionregistrationV1().ValidatingAdmissionPolicies(), checker)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
