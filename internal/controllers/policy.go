package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
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
func (s *set) scales(client kubernetes.Interface, name string) (scale.ScalesGetter, error) {
	c, err := scale.NewForConfig(s.config(name), s.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(client.Discovery()))
	if err != nil {
		return nil, fmt.Errorf("a client for scales: %w", err)
	}
	return c, nil
}

func newDisruption(ctx context.Context, s *set) (loop, error) {
	const name = "disruption-controller"
	client, err := s.client(name)
	if err != nil {
		return nil, err
	}
	scales, err := s.scales(client, name)
	if err != nil {
		return nil, err
	}
	core, apps := s.Informers.Core().V1(), s.Informers.Apps().V1()
	c := disruption.NewDisruptionController(ctx, core.Pods(), s.Informers.Policy().V1().PodDisruptionBudgets(), core.ReplicationControllers(),
		apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), client, s.mapper, scales, client.Discovery())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newResourceQuota(ctx context.Context, s *set) (loop, error) {
	client, err := s.client("resourcequota-controller")
	if err != nil {
		return nil, err
	}
	quotas, err := quotainstall.NewQuotaConfigurationForControllers(generic.ListerFuncForResourceFunc(s.Informers.ForResource), s.Informers)
	if err != nil {
		return nil, err
	}
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               client.CoreV1(),
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
		func(ctx context.Context) { c.Sync(ctx, s.served.ServerPreferredNamespacedResources, lookAgain) },
	), nil
}

func newHorizontalPodAutoscaler(ctx context.Context, s *set) (loop, error) {
	const name = "horizontal-pod-autoscaler"
	client, err := s.client(name)
	if err != nil {
		return nil, err
	}
	scales, err := s.scales(client, name)
	if err != nil {
		return nil, err
	}
	resources, err := resourceclient.NewForConfig(s.config(name))
	if err != nil {
		return nil, fmt.Errorf("a client for metrics.k8s.io: %w", err)
	}
	external, err := external_metrics.NewForConfig(s.config(name))
	if err != nil {
		return nil, fmt.Errorf("a client for external.metrics.k8s.io: %w", err)
	}
	versions := custom_metrics.NewAvailableAPIsGetter(client.Discovery())
	c := podautoscaler.NewHorizontalController(ctx, client.CoreV1(), scales, client.AutoscalingV2(), s.mapper,
		metrics.NewRESTMetricsClient(resources, custom_metrics.NewForConfig(s.config(name), s.mapper, versions), external),
		s.Informers.Autoscaling().V2().HorizontalPodAutoscalers(), s.Informers.Core().V1().Pods(),
		scaleEvery, scaleDownWindow, scaleTolerance, scaleStartup, scaleInitialReady)
	return together(
		func(ctx context.Context) { c.Run(ctx, workers) },
		func(ctx context.Context) { custom_metrics.PeriodicallyInvalidate(versions, scaleEvery, ctx.Done()) },
	), nil
}

func newPolicyStatus(_ context.Context, s *set) (loop, error) {
	client, err := s.client("validatingadmissionpolicy-status-controller")
	if err != nil {
		return nil, err
	}
	// Upstream knows the built-in types by their Go definitions, 46 MB of them;
	// the API tells the same on demand.
	checker := &validating.TypeChecker{
		SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: client.Discovery()},
		RestMapper:     s.mapper,
	}
	c, err := validatingadmissionpolicystatus.NewController(s.Informers.Admissionregistration().V1().ValidatingAdmissionPolicies(),
		client.AdmissionregistrationV1().ValidatingAdmissionPolicies(), checker)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
