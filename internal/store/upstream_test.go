package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
)

// Upstream's own tests of a storage.Interface. All that its etcd3 store passes
// are here, and those of its watch cache that speak of bookmarks.

var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

const testPrefix = "test!"

func init() {
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(scheme))
	utilruntime.Must(examplev1.AddToScheme(scheme))
}

func testConfig() *storagebackend.ConfigForResource {
	return &storagebackend.ConfigForResource{
		Config: storagebackend.Config{
			Codec:       apitesting.TestCodec(codecs, examplev1.SchemeGroupVersion),
			Transformer: storagetesting.NewPrefixTransformer([]byte(testPrefix), false),
		},
		GroupResource: schema.GroupResource{Resource: "pods"},
	}
}

func newPod() runtime.Object     { return &example.Pod{} }
func newPodList() runtime.Object { return &example.PodList{} }

// pods opens a store in memory or, by default, on disk, with one resource.
func pods(t testing.TB, edit ...func(*storagebackend.ConfigForResource)) *resource {
	t.Helper()
	return podsOf(t, openStore(t, t.TempDir()), edit...)
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func podsOf(t testing.TB, s *Store, edit ...func(*storagebackend.ConfigForResource)) *resource {
	t.Helper()
	cfg := testConfig()
	for _, e := range edit {
		e(cfg)
	}
	r, err := s.resource(cfg, "/pods/", newPod, newPodList)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// UpdatePrefixTransformer and UpdateTransformer are how upstream's tests break
// a store.
func (r *resource) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	was := r.transformer
	changed := *was.(*storagetesting.PrefixTransformer)
	r.transformer = modify(&changed)
	return func() { r.transformer = was }
}

func (r *resource) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	was := r.transformer
	r.transformer = modify(was)
	return func() { r.transformer = was }
}

// touch makes a revision that changes nothing of the resource.
func touch(t testing.TB, r *resource) int64 {
	t.Helper()
	e, _ := r.db.Get("/touched")
	var was int64
	if e != nil {
		was = e.Revision
	}
	rev, _, ok, err := r.db.Put(t.Context(), "/touched", []byte("x"), 0, was)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	return rev
}

// compact compacts as etcd's compactor does, which writes down how far it came.
func compact(r *resource) storagetesting.Compaction {
	return func(_ context.Context, t *testing.T, rv string) {
		rev, err := strconv.ParseInt(rv, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		touch(t, r)
		r.db.Compact(rev)
	}
}

func increase(r *resource) storagetesting.IncreaseRVFunc {
	return func(_ context.Context, t *testing.T) int64 { return touch(t, r) }
}

// checkStored: what is stored has no resource version of its own.
func checkStored(r *resource) storagetesting.KeyValidation {
	return func(_ context.Context, t *testing.T, key string) {
		e, _ := r.db.Get(key)
		if e == nil {
			t.Fatalf("nothing is stored at %s", key)
		}
		obj, err := runtime.Decode(r.codec, e.Value[len(testPrefix):])
		if err != nil {
			t.Fatal(err)
		}
		if pod := obj.(*example.Pod); pod.GetResourceVersion() != "" || pod.GetSelfLink() != "" {
			t.Errorf("stored with resource version %q and self link %q", pod.GetResourceVersion(), pod.GetSelfLink())
		}
	}
}

// checkReads: no object is decrypted more often than needed.
func checkReads(r *resource) storagetesting.CallsValidation {
	return func(t *testing.T, _, processed uint64) {
		if reads := r.transformer.(*storagetesting.PrefixTransformer).GetReadsAndReset(); reads != processed {
			t.Errorf("%d objects were read instead of %d", reads, processed)
		}
	}
}

func unsafeDeletion(t *testing.T, on bool) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.AllowUnsafeMalformedObjectDeletion, on)
}

// failing is a transformer or codec that can be made to fail.
type failing struct {
	value.Transformer
	runtime.Codec
	fail atomic.Bool
}

func (f *failing) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	if f.fail.Load() {
		return nil, false, errors.New("synthetic error")
	}
	return f.Transformer.TransformFromStorage(ctx, data, dataCtx)
}

func (f *failing) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if f.fail.Load() {
		return nil, nil, errors.New("synthetic error")
	}
	return f.Codec.Decode(data, defaults, into)
}

func TestUpstream(t *testing.T) {
	type run = func(context.Context, *testing.T, *resource)
	// plain adapts a test that needs nothing but a store.
	plain := func(f func(context.Context, *testing.T, storage.Interface)) run {
		return func(ctx context.Context, t *testing.T, r *resource) { f(ctx, t, r) }
	}
	withPrefix := func(f func(context.Context, *testing.T, storagetesting.InterfaceWithPrefixTransformer)) run {
		return func(ctx context.Context, t *testing.T, r *resource) { f(ctx, t, r) }
	}
	tests := map[string]run{
		"Create": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestCreate(ctx, t, r, checkStored(r))
		},
		"CreateWithTTL":                           plain(storagetesting.RunTestCreateWithTTL),
		"CreateWithKeyExist":                      plain(storagetesting.RunTestCreateWithKeyExist),
		"Get":                                     plain(storagetesting.RunTestGet),
		"UnconditionalDelete":                     plain(storagetesting.RunTestUnconditionalDelete),
		"ConditionalDelete":                       plain(storagetesting.RunTestConditionalDelete),
		"DeleteWithSuggestion":                    plain(storagetesting.RunTestDeleteWithSuggestion),
		"DeleteWithSuggestionAndConflict":         plain(storagetesting.RunTestDeleteWithSuggestionAndConflict),
		"DeleteWithSuggestionOfDeletedObject":     plain(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject),
		"DeleteWithConflict":                      plain(storagetesting.RunTestDeleteWithConflict),
		"ValidateDeletionWithSuggestion":          plain(storagetesting.RunTestValidateDeletionWithSuggestion),
		"ValidateDeletionWithOnlySuggestionValid": plain(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid),
		"PreconditionalDeleteWithSuggestion":      plain(storagetesting.RunTestPreconditionalDeleteWithSuggestion),
		"PreconditionalDeleteWithSuggestionPass":  plain(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass),
		"List": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestList(ctx, t, r, compact(r), false, nil)
		},
		"ConsistentList": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestConsistentList(ctx, t, r, increase(r), false, true, false)
		},
		"GetListNonRecursive": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestGetListNonRecursive(ctx, t, increase(r), r)
		},
		"GetListRecursivePrefix": plain(storagetesting.RunTestGetListRecursivePrefix),
		"ListContinuation": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestListContinuation(ctx, t, r, checkReads(r))
		},
		"ListPaginationRareObject": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestListPaginationRareObject(ctx, t, r, checkReads(r))
		},
		"ListContinuationWithFilter": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestListContinuationWithFilter(ctx, t, r, checkReads(r))
		},
		"ListInconsistentContinuation": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestListInconsistentContinuation(ctx, t, r, compact(r))
		},
		"ListResourceVersionMatch":  withPrefix(storagetesting.RunTestListResourceVersionMatch),
		"ListPaging":                plain(storagetesting.RunTestListPaging),
		"NamespaceScopedList":       plain(storagetesting.RunTestNamespaceScopedList),
		"KeySchema":                 plain(storagetesting.RunTestKeySchema),
		"GuaranteedUpdateWithTTL":   plain(storagetesting.RunTestGuaranteedUpdateWithTTL),
		"GuaranteedUpdateStored":    withPrefix(storagetesting.RunTestGuaranteedUpdateChecksStoredData),
		"GuaranteedUpdateConflict":  plain(storagetesting.RunTestGuaranteedUpdateWithConflict),
		"GuaranteedUpdateSuggested": plain(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict),
		"GuaranteedUpdate": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestGuaranteedUpdate(ctx, t, r, checkStored(r))
		},
		"TransformationFailure": withPrefix(storagetesting.RunTestTransformationFailure),
		"CompactRevision": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestCompactRevision(ctx, t, r, increase(r), compact(r))
		},
		"Stats": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestStats(ctx, t, r, r.codec, r.transformer, false)
		},
		"StatsSized": func(ctx context.Context, t *testing.T, r *resource) {
			if err := r.EnableResourceSizeEstimation(func(context.Context) ([]string, error) { return nil, nil }); err != nil {
				t.Fatal(err)
			}
			storagetesting.RunTestStats(ctx, t, r, r.codec, r.transformer, true)
		},
		"GetListWithoutErrorAggregation": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestGetListWithoutErrorAggregation(ctx, t, r, errors.New("bits flipped"))
		},

		"Watch":               plain(storagetesting.RunTestWatch),
		"ClusterScopedWatch":  plain(storagetesting.RunTestClusterScopedWatch),
		"NamespaceScopeWatch": plain(storagetesting.RunTestNamespaceScopedWatch),
		"DeleteTriggerWatch":  plain(storagetesting.RunTestDeleteTriggerWatch),
		"WatchFromZero": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestWatchFromZero(ctx, t, r, compact(r))
		},
		"WatchFromNonZero":                  plain(storagetesting.RunTestWatchFromNonZero),
		"DelayedWatchDelivery":              plain(storagetesting.RunTestDelayedWatchDelivery),
		"WatchError":                        withPrefix(storagetesting.RunTestWatchError),
		"WatchContextCancel":                plain(storagetesting.RunTestWatchContextCancel),
		"WatcherTimeout":                    plain(storagetesting.RunTestWatcherTimeout),
		"WatchDeleteEventObjectHaveLatest":  plain(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV),
		"WatchInitializationSignal":         plain(storagetesting.RunTestWatchInitializationSignal),
		"SendInitialEventsCompatibility":    plain(storagetesting.RunSendInitialEventsBackwardCompatibility),
		"WatchSemantics":                    plain(storagetesting.RunWatchSemantics),
		"WatchSemanticInitialEvents":        plain(storagetesting.RunWatchSemanticInitialEventsExtended),
		"WatchListMatchSingle":              plain(storagetesting.RunWatchListMatchSingle),
		"WatchErrorIsBlockingFurtherEvents": withPrefix(storagetesting.RunWatchErrorIsBlockingFurtherEvents),
		"ProgressNotify": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunOptionalTestProgressNotify(ctx, t, r, increase(r))
		},
		"WatchDispatchBookmarkEvents": func(ctx context.Context, t *testing.T, r *resource) {
			storagetesting.RunTestWatchDispatchBookmarkEvents(ctx, t, r, true)
		},
		"WatchBookmarksWithCorrectResourceVersion": plain(storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion),
	}
	// These set the process's feature gates, or have an object that lives for a
	// second.
	alone := []string{"Get", "WatchSemantics", "WatchSemanticInitialEvents", "WatchListMatchSingle"}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(alone, name) {
				t.Parallel()
			}
			r := pods(t)
			r.unsafeDeletion = false // as upstream runs them; the others are below
			run(context.Background(), t, r)
		})
	}
}

// TestUpstreamUnsafeDeletion are those with a feature gate, which is the
// process's.
func TestUpstreamUnsafeDeletion(t *testing.T) {
	unsafeDeletion(t, true)
	ctx := context.Background()
	corruptErr := corrupt("data from the storage is not transformable", 0, fmt.Errorf("bits flipped"))
	t.Run("GetListWithErrorAggregation", func(t *testing.T) {
		r := pods(t)
		r.unsafeDeletion = false // its errors are injected, not found
		storagetesting.RunTestGetListWithErrorAggregation(ctx, t, r, corruptErr)
	})
	t.Run("WatchWithUnsafeDelete", func(t *testing.T) {
		storagetesting.RunTestWatchWithUnsafeDelete(ctx, t, pods(t), corruptErr)
	})
	t.Run("MissingExpectedError", func(t *testing.T) {
		codec := &failing{Codec: testConfig().Codec}
		r := pods(t, func(cfg *storagebackend.ConfigForResource) { cfg.Codec = codec })
		storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(ctx, t, r, codec.fail.Store)
	})
	t.Run("ExpectedTransformError", func(t *testing.T) {
		transformer := &failing{Transformer: testConfig().Transformer}
		r := pods(t, func(cfg *storagebackend.ConfigForResource) { cfg.Transformer = transformer })
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, r, transformer.fail.Store)
	})
	t.Run("ExpectedDecodeError", func(t *testing.T) {
		codec := &failing{Codec: testConfig().Codec}
		r := pods(t, func(cfg *storagebackend.ConfigForResource) { cfg.Codec = codec })
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(ctx, t, r, codec.fail.Store)
	})
	t.Run("SuggestionAndMissingExpectedError", func(t *testing.T) {
		storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError(ctx, t, pods(t))
	})
}
