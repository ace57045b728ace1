package apiserver

import (
	"fmt"
	"net/http"
	"net/url"

	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"
	controlplaneadmission "k8s.io/kubernetes/pkg/controlplane/apiserver/admission"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
)

// admission is upstream's set of plugins that are on by default, in upstream's
// order.
func admission(config *genericapiserver.Config, resources *serverstorage.ResourceConfig, shared informers.SharedInformerFactory, client kubernetes.Interface, resolver serviceResolver, transport *http.Transport) error {
	dynamicClient, err := dynamic.NewForConfig(config.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	initializers, err := (&controlplaneadmission.Config{
		ExternalInformers:    shared,
		LoopbackClientConfig: config.LoopbackClientConfig,
		APIResourceConfig:    resources,
	}).New(transport, nil, resolver, config.TracerProvider)
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	err = kubeoptions.NewAdmissionOptions().GenericAdmission.ApplyTo(config, shared, client, dynamicClient, utilfeature.DefaultFeatureGate, config.EffectiveVersion, initializers...)
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	return nil
}

// serviceResolver finds an endpoint of a Service that a webhook names. The
// node process does not depend on its own Service addresses to be reachable.
type serviceResolver struct {
	services corev1listers.ServiceLister
	slices   proxy.EndpointSliceGetter
}

func (r serviceResolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	return proxy.ResolveEndpoint(r.services, r.slices, namespace, name, port)
}
