package apiserver

import (
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	crdopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/webhook"
)

// customResources is upstream's server of CustomResourceDefinitions and of the
// resources they define, with its controllers. The main server delegates to it
// what it has no group for.
func customResources(base genericapiserver.Config, options *restOptions, resolver webhook.ServiceResolver, next genericapiserver.DelegationTarget) (*apiextensions.CustomResourceDefinitions, error) {
	resources := serverstorage.NewResourceConfig()
	resources.EnableVersions(apiextensionsv1.SchemeGroupVersion)
	base.MergedResourceConfig = resources
	base.Serializer = apiextensions.Codecs
	base.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	base.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(crdopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(apiextensions.Scheme))
	base.RESTOptionsGetter = jsonRESTOptions{options, apiextensions.Codecs.LegacyCodec(apiextensionsv1.SchemeGroupVersion)}
	config := apiextensions.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: base},
		ExtraConfig: apiextensions.ExtraConfig{
			CRDRESTOptionsGetter: jsonRESTOptions{options, unstructured.UnstructuredJSONScheme},
			MasterCount:          1,
			ServiceResolver:      resolver,
			AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, base.LoopbackClientConfig, base.TracerProvider),
		},
	}
	server, err := config.Complete().New(next)
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	return server, nil
}
