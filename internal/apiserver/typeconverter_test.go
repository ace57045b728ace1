package apiserver

import (
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// TestTypeConverterConcurrent: kinds that are first written at the same time
// have parts in common, and upstream's builder writes into them. Two maps
// written at once would end the process.
func TestTypeConverterConcurrent(t *testing.T) {
	models := newOpenAPIModels(legacyscheme.Scheme)
	var wg sync.WaitGroup
	for _, kind := range []string{"Pod", "PodTemplate", "ReplicationController", "Service", "ConfigMap", "Secret", "Node", "Event"} {
		// Each group version has a converter of its own, over the same models.
		c := newTypeConverter(legacyscheme.Scheme, models)
		gvk := schema.GroupVersionKind{Version: "v1", Kind: kind}
		wg.Go(func() {
			obj, err := legacyscheme.Scheme.New(gvk)
			if err != nil {
				t.Error(err)
				return
			}
			obj.GetObjectKind().SetGroupVersionKind(gvk)
			if _, err := c.ObjectToTyped(obj); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		})
	}
	wg.Wait()
}
