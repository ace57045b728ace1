package apiserver

import (
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	openapiwithoutdisabledfeatures "k8s.io/apiserver/pkg/util/openapi"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
)

// openAPIModels are the descriptions of every kind, made when first asked for.
type openAPIModels struct {
	namer  *openapi.DefinitionNamer
	onceV3 sync.Once
	config *openapicommon.OpenAPIV3Config
}

func newOpenAPIModels(schemes ...*runtime.Scheme) *openAPIModels {
	return &openAPIModels{namer: openapi.NewDefinitionNamer(schemes...)}
}

func (m *openAPIModels) definitions() openapicommon.GetOpenAPIDefinitions {
	return openapiwithoutdisabledfeatures.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
}

func (m *openAPIModels) v3() *openapicommon.OpenAPIV3Config {
	m.onceV3.Do(func() {
		m.config = genericapiserver.DefaultOpenAPIV3Config(m.definitions(), m.namer)
		m.config.Info.Title = "Kubernetes"
	})
	return m.config
}
