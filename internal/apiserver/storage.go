package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	serveroptions "k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/pkg/kubeapiserver"
)

// storagePrefix is the root of every key, upstream's.
const storagePrefix = "/registry"

// restOptions says how each resource is stored: upstream's encodings, keys and
// storage versions, on our store, Secrets encrypted.
type restOptions struct {
	decorator generic.StorageDecorator
	factory   *serverstorage.DefaultStorageFactory
	encrypted map[schema.GroupResource]value.Transformer
}

func newStorageFactory(resources *serverstorage.ResourceConfig, version basecompatibility.EffectiveVersion) (*serverstorage.DefaultStorageFactory, error) {
	config := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(version)
	config.APIResourceConfig = resources
	return config.Complete(&serveroptions.EtcdOptions{
		StorageConfig:           *storagebackend.NewDefaultConfig(storagePrefix, nil),
		DefaultStorageMediaType: runtime.ContentTypeProtobuf,
	}).New()
}

// GetRESTOptions is called with a nil example by who only wants to know the
// prefix.
func (o *restOptions) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	config, err := o.factory.NewConfig(resource, example)
	if err != nil {
		return generic.RESTOptions{}, fmt.Errorf("how %s is stored: %w", resource, err)
	}
	config.Transformer = identity.NewEncryptCheckTransformer()
	if t, ok := o.encrypted[resource]; ok {
		config.Transformer = t
	}
	return o.options(config, o.factory.ResourcePrefix(resource)), nil
}

func (o *restOptions) options(config *storagebackend.ConfigForResource, prefix string) generic.RESTOptions {
	return generic.RESTOptions{
		StorageConfig:           config,
		Decorator:               o.decorator,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 1,
		ResourcePrefix:          prefix,
	}
}

// jsonRESTOptions says how what is not in upstream's main scheme is stored: as
// JSON.
type jsonRESTOptions struct {
	*restOptions
	codec runtime.Codec
}

func (o jsonRESTOptions) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	config := storagebackend.NewDefaultConfig(storagePrefix, o.codec).ForResource(resource)
	config.Transformer = identity.NewEncryptCheckTransformer()
	return o.options(config, resource.Group+"/"+resource.Resource), nil
}
