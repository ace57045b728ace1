package store

import (
	"context"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"unipod.dev/unipod/internal/store/kv"
)

// maxChunk bounds how many entries are taken at once when a selector leaves
// some of them out.
const maxChunk = 10000

func (r *resource) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	prefix, err := r.key(key, opts.Recursive)
	if err != nil {
		return err
	}
	items, err := meta.GetItemsPtr(list)
	if err != nil {
		return err
	}
	v, err := conversion.EnforcePtr(items)
	if err != nil || v.Kind() != reflect.Slice {
		return fmt.Errorf("need a pointer to a slice of items: %w", err)
	}
	rev, from, err := storage.ValidateListOptions(prefix, r.versioner, opts)
	if err != nil {
		return err
	}
	l := &lister{r: r, opts: opts, items: v, newItem: newItem(list, v)}
	limit := int(opts.Predicate.Limit)
	var page kv.Page
	var more bool
	for chunk := limit; ; chunk = min(2*chunk, maxChunk) {
		page, err = r.page(prefix, from, chunk, rev, opts.Recursive)
		if err != nil {
			return listError(err, rev, r.db.Revision(), opts.Predicate.Continue != "", from, prefix)
		}
		if rev == 0 {
			if err := r.notOlder(opts.ResourceVersion, page.Revision); err != nil {
				return err
			}
			rev = page.Revision
		}
		full, err := l.add(ctx, page.Entries)
		if err != nil {
			return err
		}
		more = full || page.Rest > 0
		if full || page.Rest == 0 || v.Len() >= limit {
			break
		}
		from = l.last + "\x00"
	}
	if err := l.corrupt.status(r.gr, nil); err != nil {
		return err
	}
	token, remaining, err := storage.PrepareContinueToken(l.last, prefix, rev, int64(len(page.Entries)+page.Rest), more, opts)
	if err != nil {
		return err
	}
	if v.IsNil() {
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	}
	if err := r.versioner.UpdateList(list, uint64(rev), token, remaining); err != nil {
		return err
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.ShardedListAndWatch) {
		opts.Predicate.SetShardInfoOnList(list)
	}
	return nil
}

// page reads entries with a prefix or, where it isn't recursive, the one entry
// that has it as its key.
func (r *resource) page(prefix, from string, limit int, rev int64, recursive bool) (kv.Page, error) {
	if recursive {
		return r.db.List(prefix, from, limit, rev)
	}
	page := kv.Page{Revision: rev}
	var e *kv.Entry
	var err error
	if rev == 0 {
		e, page.Revision = r.db.Get(prefix)
	} else if e, err = r.db.GetAt(prefix, rev); err != nil {
		return kv.Page{}, err
	}
	if e != nil {
		page.Entries = []*kv.Entry{e}
	}
	return page, nil
}

type lister struct {
	r       *resource
	opts    storage.ListOptions
	items   reflect.Value
	newItem func() runtime.Object
	last    string // the key that was looked at last
	corrupt corruptList
}

// add decodes entries and appends those that are selected. It stops before one
// that would be too many.
func (l *lister) add(ctx context.Context, entries []*kv.Entry) (full bool, err error) {
	pred := &l.opts.Predicate
	if pred.Empty() {
		l.items.Grow(len(entries))
	}
	for _, e := range entries {
		if pred.Limit > 0 && int64(l.items.Len()) >= pred.Limit {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, storage.NewTimeoutError(e.Key, "request did not complete within requested timeout")
		}
		l.last = e.Key
		obj, err := l.decode(ctx, e)
		if err != nil {
			if isCorrupt(err) {
				if l.corrupt.add(e.Key, err) {
					continue
				}
				err = nil
			}
			return false, l.corrupt.status(l.r.gr, err)
		}
		if matched, err := pred.Matches(obj); err == nil && matched {
			l.items.Set(reflect.Append(l.items, reflect.ValueOf(obj).Elem()))
		}
	}
	return false, nil
}

func (l *lister) decode(ctx context.Context, e *kv.Entry) (runtime.Object, error) {
	data, _, err := l.r.decrypt(ctx, e)
	if err != nil {
		return nil, storage.NewInternalError(fmt.Errorf("unable to transform key %q: %w", e.Key, err))
	}
	return l.r.decode(data, l.newItem(), e.Revision)
}

// newItem makes items of a list's type; unstructured ones of its version too.
func newItem(list runtime.Object, items reflect.Value) func() runtime.Object {
	if u, ok := list.(*unstructured.UnstructuredList); ok {
		if version := u.GetAPIVersion(); version != "" {
			return func() runtime.Object {
				return &unstructured.Unstructured{Object: map[string]any{"apiVersion": version}}
			}
		}
	}
	elem := items.Type().Elem()
	return func() runtime.Object { return reflect.New(elem).Interface().(runtime.Object) }
}
