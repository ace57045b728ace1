package apiserver

import (
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/builder3"
	openapiutil "k8s.io/kube-openapi/pkg/util"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// typeConverter gives field management the schema of a kind. Upstream's builds
// that of every kind at start, a quarter of a second and 46 MB; this one builds
// a kind's when an object of it is first written.
type typeConverter struct {
	scheme *runtime.Scheme
	models *openAPIModels

	mu    sync.Mutex
	kinds map[schema.GroupVersionKind]*kindConverter
}

type kindConverter struct {
	once sync.Once
	managedfields.TypeConverter
	err error
}

func newTypeConverter(scheme *runtime.Scheme, models *openAPIModels) *typeConverter {
	return &typeConverter{scheme: scheme, models: models, kinds: map[schema.GroupVersionKind]*kindConverter{}}
}

func (c *typeConverter) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	k := c.kind(obj.GetObjectKind().GroupVersionKind())
	if k.err != nil {
		return nil, k.err
	}
	return k.ObjectToTyped(obj, opts...)
}

// TypedToObject needs no schema.
func (c *typeConverter) TypedToObject(value *typed.TypedValue) (runtime.Object, error) {
	return managedfields.NewDeducedTypeConverter().TypedToObject(value)
}

func (c *typeConverter) kind(gvk schema.GroupVersionKind) *kindConverter {
	c.mu.Lock()
	k, ok := c.kinds[gvk]
	if !ok {
		k = &kindConverter{}
		// A foreign kind can't get here: the converter is asked about the kinds
		// of the group versions it was installed with, so the map is bounded.
		c.kinds[gvk] = k
	}
	c.mu.Unlock()
	k.once.Do(func() { k.TypeConverter, k.err = c.build(gvk) })
	return k
}

func (c *typeConverter) build(gvk schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	sample, err := c.scheme.New(gvk)
	if err != nil {
		return nil, fmt.Errorf("the schema of %s: %w", gvk, err)
	}
	config, done := c.models.v3()
	defer done()
	schemas, err := builder3.BuildOpenAPIDefinitionsForResources(config, openapiutil.GetCanonicalTypeName(sample))
	if err != nil {
		return nil, fmt.Errorf("the schema of %s: %w", gvk, err)
	}
	return managedfields.NewTypeConverter(schemas, false)
}
