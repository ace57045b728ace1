package apiserver

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	admissionmetrics "k8s.io/apiserver/pkg/admission/metrics"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
	controlplaneadmission "k8s.io/kubernetes/pkg/controlplane/apiserver/admission"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
)

// admitter decides about requests, once it knows by what. Upstream's plugins
// look every 100 ms whether their informers are there: they are made when
// theirs are, so that the first look is enough.
type admitter struct {
	known chan struct{} // closed when chain is set
	chain admission.Interface
}

func newAdmitter() *admitter { return &admitter{known: make(chan struct{})} }

func (a *admitter) Handles(o admission.Operation) bool {
	select {
	case <-a.known:
		return a.chain.Handles(o)
	default:
		return true
	}
}

func (a *admitter) Admit(ctx context.Context, attr admission.Attributes, o admission.ObjectInterfaces) error {
	if err := a.wait(ctx, attr); err != nil {
		return err
	}
	if m, ok := a.chain.(admission.MutationInterface); ok && a.chain.Handles(attr.GetOperation()) {
		return m.Admit(ctx, attr, o)
	}
	return nil
}

func (a *admitter) Validate(ctx context.Context, attr admission.Attributes, o admission.ObjectInterfaces) error {
	if err := a.wait(ctx, attr); err != nil {
		return err
	}
	if v, ok := a.chain.(admission.ValidationInterface); ok && a.chain.Handles(attr.GetOperation()) {
		return v.Validate(ctx, attr, o)
	}
	return nil
}

func (a *admitter) wait(ctx context.Context, attr admission.Attributes) error {
	select {
	case <-a.known:
		return nil
	case <-ctx.Done():
		return admission.NewForbidden(attr, fmt.Errorf("the API server is starting: %w", context.Cause(ctx)))
	}
}

// admissionParts is what the plugins are made of.
type admissionParts struct {
	config    *genericapiserver.Config
	resources *serverstorage.ResourceConfig
	shared    informers.SharedInformerFactory
	client    kubernetes.Interface
	resolver  serviceResolver
	transport *http.Transport
	crds      cache.SharedIndexInformer
	stop      <-chan struct{}
}

// informers asks for those the plugins would wait for if they weren't there.
func (p *admissionParts) informers() {
	a := p.shared.Admissionregistration().V1()
	for _, i := range []interface {
		Informer() cache.SharedIndexInformer
	}{
		a.ValidatingAdmissionPolicies(), a.ValidatingAdmissionPolicyBindings(), a.MutatingAdmissionPolicies(), a.MutatingAdmissionPolicyBindings(),
		a.ValidatingWebhookConfigurations(), a.MutatingWebhookConfigurations(), p.shared.Core().V1().Namespaces(),
	} {
		i.Informer()
	}
}

// plugins makes upstream's plugins that are on by default, in upstream's order.
func (p *admissionParts) plugins() (admission.Interface, error) {
	dynamicClient, err := dynamic.NewForConfig(p.config.LoopbackClientConfig)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	// Policies name the kinds of their parameters, which custom resources
	// define: what is known of kinds is as old as the last definition.
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(p.client.Discovery()))
	_, err = p.crds.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { mapper.Reset() },
		UpdateFunc: func(any, any) { mapper.Reset() },
		DeleteFunc: func(any) { mapper.Reset() },
	})
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	kube, err := (&controlplaneadmission.Config{
		ExternalInformers:    p.shared,
		LoopbackClientConfig: p.config.LoopbackClientConfig,
		APIResourceConfig:    p.resources,
	}).New(p.transport, nil, p.resolver, p.config.TracerProvider)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	initializers := append(admission.PluginInitializers{
		initializer.NewAPIServerIDInitializer(p.config.APIServerID),
		initializer.New(p.client, dynamicClient, p.shared, p.config.Authorization.Authorizer, utilfeature.DefaultFeatureGate, p.config.EffectiveVersion, p.stop, mapper),
	}, kube...)
	options := kubeoptions.NewAdmissionOptions().GenericAdmission
	names := slices.DeleteFunc(slices.Clone(options.RecommendedPluginOrder), options.DefaultOffPlugins.Has)
	chain, err := options.Plugins.NewFromPlugins(names, defaultPluginConfig{}, initializers, options.Decorators)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	return admissionmetrics.WithStepMetrics(chain), nil
}

// defaultPluginConfig leaves every plugin as upstream made it.
type defaultPluginConfig struct{}

func (defaultPluginConfig) ConfigFor(string) (io.Reader, error) { return nil, nil }

// serviceResolver finds an endpoint of a Service that a webhook names. The
// node process does not depend on its own Service addresses to be reachable.
type serviceResolver struct {
	services corev1listers.ServiceLister
	slices   proxy.EndpointSliceGetter
}

func (r serviceResolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	return proxy.ResolveEndpoint(r.services, r.slices, namespace, name, port)
}
