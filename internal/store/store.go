// Package store keeps the Kubernetes API's objects: it is storage.Interface,
// the seam upstream's registries are written against, over internal/store/kv.
//
// It owns the directory of the API's objects. What it promises of durability,
// of the past and of slow watches is kv's promise: a write is on disk before
// it is acknowledged, nothing acknowledged is lost by a crash, a full disk
// fails writes with a sentence and leaves reads alone, and a second process is
// refused with the holder's name. Semantics of resource versions, lists,
// continue tokens, watches, bookmarks and preconditions are those of upstream's
// etcd3 store, and its tests are run against it.
//
// There is no watch cache in front: the store's own index is the cache. It
// holds objects as they are stored (encoded and, for Secrets, encrypted), so
// memory isn't paid twice, and every read is a consistent one. An event is
// decoded and encoded once for all who watch it.
//
// Everything is safe for concurrent use. Floor: over the ground, beside the
// engine; it imports nothing of unipod but kv.
package store

import (
	"context"
	"io"
	"log/slog"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/store/kv"
)

// Config says where the objects live. Empty fields mean their default.
type Config struct {
	// Dir is the store's own directory. Empty keeps everything in memory.
	Dir   string
	Log   *slog.Logger
	Clock clock.WithTicker
}

// Store holds the objects of all resources.
type Store struct {
	db    *kv.DB
	clock clock.WithTicker
	log   *slog.Logger
}

// Errors of Open, see package kv.
type (
	LockedError = kv.LockedError
	DamageError = kv.DamageError
)

// Open opens a store. When another process has it, the error is a
// *LockedError; when a file is damaged, a *DamageError.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	db, err := kv.Open(kv.Config{Dir: cfg.Dir, Log: cfg.Log, Clock: cfg.Clock})
	if err != nil {
		return nil, err
	}
	return &Store{db: db, clock: cfg.Clock, log: cfg.Log}, nil
}

// Close waits for the writes that are on their way, and ends watches.
func (s *Store) Close() error { return s.db.Close() }

// Revision is the resource version of the last write.
func (s *Store) Revision() int64 { return s.db.Revision() }

// Empty tells whether nothing was ever written.
func (s *Store) Empty() bool { return s.db.Revision() <= kv.FirstRevision }

// Backup writes everything, as it is at one revision. Writes go on meanwhile.
func (s *Store) Backup(w io.Writer) (revision int64, err error) { return s.db.Backup(w) }

// Condense returns when nothing on disk tells any more what objects were before.
func (s *Store) Condense(ctx context.Context) error { return s.db.Condense(ctx) }

// Restore replaces what is in a store's directory by a backup, which is read
// and checked as a whole first. When a process has the directory open, the
// error is a *LockedError; when the backup isn't whole, a *DamageError.
func Restore(r io.Reader, dir string) (revision int64, err error) { return kv.Restore(r, dir) }

// Decorator makes the storages of resources, for generic.RESTOptions. They
// need no watch cache.
func (s *Store) Decorator() generic.StorageDecorator {
	return func(config *storagebackend.ConfigForResource, resourcePrefix string, _ func(runtime.Object) (string, error),
		newFunc, newListFunc func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs, _ *cache.Indexers,
	) (storage.Interface, factory.DestroyFunc, error) {
		r, err := s.resource(config, resourcePrefix, newFunc, newListFunc)
		if err != nil {
			return nil, nil, err
		}
		return r, func() {}, nil
	}
}
