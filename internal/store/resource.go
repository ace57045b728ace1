package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"unipod.dev/unipod/internal/store/kv"
)

// resource is the storage of one resource.
type resource struct {
	store       *Store
	db          *kv.DB
	codec       runtime.Codec
	versioner   storage.Versioner
	transformer value.Transformer
	newFunc     func() runtime.Object
	gr          schema.GroupResource

	pathPrefix     string // of all resources, ends in "/"
	resourcePrefix string
	// unsafeDeletion: objects that can't be decoded are told apart, so that
	// they can be deleted.
	unsafeDeletion bool
	sized          atomic.Bool // Stats tells sizes

	watches  atomic.Int64
	recently recently

	mu       sync.Mutex
	progress map[*watcher]struct{} // who wants to be told on request
}

var _ storage.Interface = (*resource)(nil)

func (s *Store) resource(config *storagebackend.ConfigForResource, resourcePrefix string, newFunc, newListFunc func() runtime.Object) (*resource, error) {
	if resourcePrefix == "/" || !strings.HasPrefix(resourcePrefix, "/") {
		return nil, fmt.Errorf("storage of %s: the resource prefix %q must begin with / and say more", config.GroupResource, resourcePrefix)
	}
	r := &resource{
		store:          s,
		db:             s.db,
		codec:          config.Codec,
		versioner:      storage.APIObjectVersioner{},
		transformer:    config.Transformer,
		newFunc:        newFunc,
		gr:             config.GroupResource,
		pathPrefix:     strings.TrimSuffix(path.Join("/", config.Prefix), "/") + "/",
		resourcePrefix: resourcePrefix,
		unsafeDeletion: utilfeature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion),
		progress:       map[*watcher]struct{}{},
	}
	if r.transformer == nil {
		r.transformer = identity.NewEncryptCheckTransformer()
	}
	return r, nil
}

// key is where an object lives. Of a list or watch it is what the keys begin
// with.
func (r *resource) key(key string, recursive bool) (string, error) {
	key, err := storage.PrepareKey(r.resourcePrefix, key, recursive)
	if err != nil {
		return "", apierrors.NewBadRequest(err.Error()) // a name that is a path, as ".." is
	}
	return r.pathPrefix + strings.TrimPrefix(key, "/"), nil
}

// authenticated binds an encrypted value to its key.
type authenticated string

func (a authenticated) AuthenticatedData() []byte { return []byte(a) }

// decrypt gives back what was encoded, and whether it should be written anew.
func (r *resource) decrypt(ctx context.Context, e *kv.Entry) (data []byte, stale bool, err error) {
	data, stale, err = r.transformer.TransformFromStorage(ctx, e.Value, authenticated(e.Key))
	if err != nil && r.unsafeDeletion {
		err = corrupt("data from the storage is not transformable", e.Revision, err)
	}
	return data, stale, err
}

// decode decodes into an object, which it returns or, where the codec knows
// better, another.
func (r *resource) decode(data []byte, into runtime.Object, revision int64) (runtime.Object, error) {
	obj, _, err := r.codec.Decode(data, nil, into)
	if err != nil {
		if r.unsafeDeletion {
			err = corrupt("object not decodable", revision, err)
		}
		return nil, err
	}
	if err := r.versioner.UpdateObject(obj, uint64(revision)); err != nil {
		return nil, fmt.Errorf("the resource version of %s: %w", r.gr, err)
	}
	return obj, nil
}

// MaxObject is the size of the largest object, encoded. It is etcd's limit, to
// which clients are used.
const MaxObject = 1536 << 10

// encode gives the bytes an object is stored as, before encryption. The object
// loses its resource version.
func (r *resource) encode(obj runtime.Object) ([]byte, error) {
	if err := r.versioner.PrepareObjectForStorage(obj); err != nil {
		return nil, fmt.Errorf("PrepareObjectForStorage failed: %w", err)
	}
	return runtime.Encode(r.codec, obj)
}

func (r *resource) encrypt(ctx context.Context, key string, data []byte) ([]byte, error) {
	if len(data) > MaxObject {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the object is %d bytes long when stored; an object may have at most %d", len(data), MaxObject))
	}
	enc, err := r.transformer.TransformToStorage(ctx, data, authenticated(key))
	if err != nil {
		return nil, storage.NewInternalError(err)
	}
	return enc, nil
}

// expires is the end of a time to live.
func (r *resource) expires(ttl uint64) int64 {
	if ttl == 0 {
		return 0
	}
	return r.store.clock.Now().UnixMilli() + int64(min(ttl, 1<<40))*1000
}

func (r *resource) Versioner() storage.Versioner { return r.versioner }

func (r *resource) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	k, err := r.key(key, false)
	if err != nil {
		return err
	}
	if version, err := r.versioner.ObjectResourceVersion(obj); err == nil && version != 0 {
		return storage.ErrResourceVersionSetOnCreate
	}
	data, err := r.encode(obj)
	if err != nil {
		return err
	}
	enc, err := r.encrypt(ctx, k, data)
	if err != nil {
		return err
	}
	rev, _, ok, err := r.db.Put(ctx, k, enc, r.expires(ttl), 0)
	if err != nil {
		return writeError(err)
	}
	if !ok {
		return storage.NewKeyExistsError(k, 0)
	}
	if out == nil {
		return nil
	}
	return r.decodeInto(data, out, rev)
}

// decodeInto decodes into an object of the caller.
func (r *resource) decodeInto(data []byte, out runtime.Object, rev int64) error {
	if _, err := conversion.EnforcePtr(out); err != nil {
		return fmt.Errorf("unable to convert output object to pointer: %w", err)
	}
	_, err := r.decode(data, out, rev)
	return err
}

func (r *resource) Get(ctx context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	k, err := r.key(key, false)
	if err != nil {
		return err
	}
	e, now := r.db.Get(k)
	if err := r.notOlder(opts.ResourceVersion, now); err != nil {
		return err
	}
	if e == nil {
		if opts.IgnoreNotFound {
			return runtime.SetZeroValue(out)
		}
		return storage.NewKeyNotFoundError(k, 0)
	}
	data, _, err := r.decrypt(ctx, e)
	if err != nil {
		if isCorrupt(err) {
			return storage.NewCorruptObjError(key, err)
		}
		return storage.NewInternalError(err)
	}
	if err := r.decodeInto(data, out, e.Revision); err != nil {
		if isCorrupt(err) {
			return storage.NewCorruptObjError(key, err)
		}
		return err
	}
	return nil
}

// notOlder fails when a caller has seen a newer revision than there is.
func (r *resource) notOlder(atLeast string, now int64) error {
	if atLeast == "" {
		return nil
	}
	rev, err := r.versioner.ParseResourceVersion(atLeast)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", err))
	}
	if rev > uint64(now) {
		return storage.NewTooLargeResourceVersionError(rev, uint64(now), 0)
	}
	return nil
}

func (r *resource) Stats(context.Context) (storage.Stats, error) {
	prefix, err := r.key(r.resourcePrefix, true)
	if err != nil {
		return storage.Stats{}, err
	}
	keys, bytes := r.db.Size(prefix)
	stats := storage.Stats{ObjectCount: int64(keys)}
	if keys > 0 && r.sized.Load() {
		stats.EstimatedAverageObjectSizeBytes = bytes / int64(keys)
	}
	return stats, nil
}

// EnableResourceSizeEstimation needs no help: the index knows all sizes.
func (r *resource) EnableResourceSizeEstimation(keys storage.KeysFunc) error {
	if keys == nil {
		return errors.New("KeysFunc cannot be nil")
	}
	if r.sized.Swap(true) {
		return errors.New("resource size estimation is already enabled")
	}
	return nil
}

func (r *resource) ReadinessCheck() error { return nil }

func (r *resource) GetCurrentResourceVersion(context.Context) (uint64, error) {
	return uint64(r.db.Revision()), nil
}

func (r *resource) CompactRevision() int64 { return r.db.Compacted() }
