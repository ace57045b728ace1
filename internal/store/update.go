package store

import (
	"bytes"
	"context"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"

	"unipod.dev/unipod/internal/store/kv"
)

// found is an object as it is, or as a caller believes it to be.
type found struct {
	obj     runtime.Object // nil when it can't be decoded
	data    []byte         // encoded
	rev     int64          // 0: it isn't there
	expires int64
	stale   bool // should be written anew even if it doesn't change
	current bool // read from the store, not believed
}

// look reads the object at a key.
func (r *resource) look(ctx context.Context, key string, v reflect.Value, ignoreNotFound, expectCorrupt bool) (*found, error) {
	e, _ := r.db.Get(key)
	return r.found(ctx, key, e, v, ignoreNotFound, expectCorrupt)
}

// found decodes an entry, nil if there is none. Where an object is expected to
// be corrupt it is an error if it isn't.
func (r *resource) found(ctx context.Context, key string, e *kv.Entry, v reflect.Value, ignoreNotFound, expectCorrupt bool) (*found, error) {
	f := &found{current: true}
	if u, ok := v.Addr().Interface().(runtime.Unstructured); ok {
		f.obj = u.NewEmptyInstance()
	} else {
		f.obj = reflect.New(v.Type()).Interface().(runtime.Object)
	}
	if e == nil {
		if !ignoreNotFound {
			return nil, storage.NewKeyNotFoundError(key, 0)
		}
		return f, runtime.SetZeroValue(f.obj)
	}
	f.rev, f.expires = e.Revision, e.Expires
	var err error
	if f.data, f.stale, err = r.decrypt(ctx, e); err != nil {
		if expectCorrupt {
			return &found{rev: f.rev, stale: true, current: true}, nil
		}
		return nil, storage.NewInternalError(err)
	}
	if err := r.decodeInto(f.data, f.obj, f.rev); err != nil {
		if expectCorrupt {
			return &found{rev: f.rev, current: true}, nil
		}
		return nil, err
	}
	if expectCorrupt {
		return nil, storage.NewInvalidObjError(key, "unsafe deletion is not allowed because the object is decodable from storage")
	}
	return f, nil
}

// believed is what a caller says an object is.
func (r *resource) believed(obj runtime.Object) (*found, error) {
	rv, err := r.versioner.ObjectResourceVersion(obj)
	if err != nil {
		return nil, fmt.Errorf("couldn't get resource version: %w", err)
	}
	data, err := r.encode(obj)
	if err != nil {
		return nil, err
	}
	if err := r.versioner.UpdateObject(obj, rv); err != nil {
		return nil, err
	}
	return &found{obj: obj, data: data, rev: int64(rv)}, nil
}

// again reads an object anew after what was believed of it led to an error.
// When it was true the error stands.
func again(was *found, cause error, look func() (*found, error)) (*found, error) {
	if was.current {
		return nil, cause
	}
	is, err := look()
	if err != nil {
		return nil, err
	}
	if is.rev == was.rev {
		return nil, cause
	}
	return is, nil
}

func (r *resource) Delete(ctx context.Context, key string, out runtime.Object, preconditions *storage.Preconditions,
	validate storage.ValidateObjectFunc, suggestion runtime.Object, opts storage.DeleteOptions,
) error {
	k, err := r.key(key, false)
	if err != nil {
		return err
	}
	v, err := conversion.EnforcePtr(out)
	if err != nil {
		return fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	expectCorrupt := r.unsafeDeletion && opts.ExpectTransformOrDecodeError
	look := func() (*found, error) { return r.look(ctx, k, v, false, expectCorrupt) }
	var was *found
	if suggestion != nil && !expectCorrupt {
		was, err = r.believed(suggestion)
	} else {
		was, err = look()
	}
	for {
		if err != nil {
			return err
		}
		if preconditions != nil {
			if err := preconditions.Check(k, was.obj); err != nil {
				if was, err = again(was, err, look); err != nil {
					return err
				}
				continue
			}
		}
		if err := validate(ctx, was.obj); err != nil {
			if was, err = again(was, err, look); err != nil {
				return err
			}
			continue
		}
		rev, now, ok, err := r.db.Delete(ctx, k, was.rev)
		if err != nil {
			return writeError(err)
		}
		if ok {
			if was.obj == nil {
				return nil
			}
			return r.decodeInto(was.data, out, rev)
		}
		if was, err = r.found(ctx, k, now, v, false, expectCorrupt); err != nil {
			return err
		}
	}
}

func (r *resource) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, update storage.UpdateFunc, suggestion runtime.Object,
) error {
	k, err := r.key(key, false)
	if err != nil {
		return err
	}
	v, err := conversion.EnforcePtr(out)
	if err != nil {
		return fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	look := func() (*found, error) { return r.look(ctx, k, v, ignoreNotFound, false) }
	var was *found
	if suggestion != nil {
		was, err = r.believed(suggestion)
	} else {
		was, err = look()
	}
	for {
		if err != nil {
			return err
		}
		if err := preconditions.Check(k, was.obj); err != nil {
			if was.current {
				return err
			}
			if was, err = look(); err != nil {
				return err
			}
			continue
		}
		obj, ttl, err := update(was.obj, storage.ResponseMeta{ResourceVersion: uint64(was.rev), TTL: r.remaining(was.expires)})
		if err != nil {
			if was, err = again(was, err, look); err != nil {
				return err
			}
			continue
		}
		data, err := r.encode(obj)
		if err != nil {
			return err
		}
		if !was.stale && bytes.Equal(data, was.data) {
			// Only what is stored, not what is believed, needs no write.
			if !was.current {
				if was, err = look(); err != nil {
					return err
				}
				if !bytes.Equal(data, was.data) {
					continue
				}
			}
			if !was.stale {
				return r.decodeInto(was.data, out, was.rev)
			}
		}
		enc, err := r.encrypt(ctx, k, data)
		if err != nil {
			return err
		}
		expires := was.expires
		if ttl != nil {
			expires = r.expires(*ttl)
		} else if !was.current {
			// A caller's object doesn't say when it ends.
			if e, _ := r.db.Get(k); e != nil {
				expires = e.Expires
			}
		}
		rev, now, ok, err := r.db.Put(ctx, k, enc, expires, was.rev)
		if err != nil {
			return writeError(err)
		}
		if ok {
			return r.decodeInto(data, out, rev)
		}
		if was, err = r.found(ctx, k, now, v, ignoreNotFound, false); err != nil {
			return err
		}
	}
}

// remaining is a time to live in seconds, at least one while there is an end:
// zero would say that there is none.
func (r *resource) remaining(expires int64) int64 {
	if expires == 0 {
		return 0
	}
	return max(1, (expires-r.store.clock.Now().UnixMilli()+999)/1000)
}
