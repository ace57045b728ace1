package apiserver

import (
	"reflect"

	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	printerstorage "k8s.io/kubernetes/pkg/printers/storage"
)

// sharedTables has every resource print by the same printers: upstream makes
// those of all kinds anew for each resource, 2 MB in all.
type sharedTables struct {
	printers rest.TableConvertor // of the first resource that was seen
}

// share gives a resource the printers of the others. Its store may be a field
// that isn't exported, as that of a status is; where a field is another there
// is nothing to share. It returns how many stores share them now.
func (t *sharedTables) share(resource rest.Storage) (n int) {
	v := reflect.ValueOf(resource)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return 0
	}
	for i := range v.Elem().NumField() {
		field := v.Elem().Field(i)
		if field.Type() != reflect.TypeFor[*genericregistry.Store]() || field.IsNil() {
			continue
		}
		store := (*genericregistry.Store)(field.UnsafePointer())
		if _, ours := store.TableConvertor.(printerstorage.TableConvertor); !ours {
			continue
		}
		if t.printers == nil {
			t.printers = store.TableConvertor
		}
		store.TableConvertor = t.printers
		n++
	}
	return n
}
