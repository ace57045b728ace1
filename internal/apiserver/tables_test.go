package apiserver

import (
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/printers"
	printerstorage "k8s.io/kubernetes/pkg/printers/storage"
)

// As upstream has them: a resource's store is embedded, its status' is a field
// that isn't exported.
type (
	wholeREST  struct{ *registry.Store }
	statusREST struct{ store *registry.Store }
)

func (statusREST) New() runtime.Object { return nil }
func (statusREST) Destroy()            {}

func TestSharedTables(t *testing.T) {
	store := func() *registry.Store {
		return &registry.Store{TableConvertor: printerstorage.TableConvertor{TableGenerator: printers.NewTableGenerator()}}
	}
	first, second, foreign := store(), store(), store()
	foreign.TableConvertor = rest.NewDefaultTableConvertor(schema.GroupResource{Resource: "things"})
	var tables sharedTables
	if n := tables.share(&wholeREST{first}); n != 1 {
		t.Fatalf("%d stores of a resource share, want 1", n)
	}
	if n := tables.share(&statusREST{second}); n != 1 || second.TableConvertor != first.TableConvertor {
		t.Errorf("%d stores of a status share, want 1, with the first's printers", n)
	}
	if n := tables.share(&wholeREST{foreign}); n != 0 || foreign.TableConvertor == first.TableConvertor {
		t.Error("a store that prints otherwise was given our printers")
	}
}
