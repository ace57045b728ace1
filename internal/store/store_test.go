package store

import (
	"bytes"
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/value"
	aestransformer "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	clocktesting "k8s.io/utils/clock/testing"
)

func pod(name string) *example.Pod {
	return &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
}

func podKey(name string) string { return "/pods/ns/" + name }

func create(t testing.TB, r *resource, p *example.Pod) *example.Pod {
	t.Helper()
	out := &example.Pod{}
	if err := r.Create(t.Context(), podKey(p.Name), p, out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

// label changes a pod's label.
func label(t testing.TB, r *resource, name, value string) *example.Pod {
	t.Helper()
	out := &example.Pod{}
	err := r.GuaranteedUpdate(t.Context(), podKey(name), out, false, nil, storage.SimpleUpdate(func(obj kruntime.Object) (kruntime.Object, error) {
		p := obj.(*example.Pod)
		p.Labels = map[string]string{"l": value}
		return p, nil
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOpenedAgain: objects, their versions and a watch's place outlive the
// process.
func TestOpenedAgain(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	r := podsOf(t, s)
	first := create(t, r, pod("a"))
	second := label(t, r, "a", "x")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r = podsOf(t, openStore(t, dir))
	got := &example.Pod{}
	if err := r.Get(t.Context(), podKey("a"), storage.GetOptions{ResourceVersion: second.ResourceVersion}, got); err != nil || got.ResourceVersion != second.ResourceVersion || got.Labels["l"] != "x" {
		t.Fatalf("%+v, %v", got, err)
	}
	w, err := r.Watch(t.Context(), "/pods/", storage.ListOptions{Recursive: true, ResourceVersion: first.ResourceVersion, Predicate: storage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if ev := <-w.ResultChan(); ev.Type != watch.Modified || ev.Object.(*example.Pod).ResourceVersion != second.ResourceVersion {
		t.Errorf("%+v", ev)
	}
}

// TestEncryption: what is encrypted can't be read on the disk, nor under
// another key; what an old key encrypted is written anew.
func TestEncryption(t *testing.T) {
	gcm := func(secret byte) value.Transformer {
		block, err := aes.NewCipher(bytes.Repeat([]byte{secret}, 32))
		if err != nil {
			t.Fatal(err)
		}
		tr, err := aestransformer.NewGCMTransformer(block)
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	prefixed := func(names ...string) value.Transformer {
		var all []value.PrefixTransformer
		for _, n := range names {
			all = append(all, value.PrefixTransformer{Prefix: []byte("k8s:enc:aesgcm:v1:" + n + ":"), Transformer: gcm(n[0])})
		}
		return value.NewPrefixTransformers(errors.New("no key fits"), all...)
	}
	dir := t.TempDir()
	s := openStore(t, dir)
	r := podsOf(t, s, func(cfg *storagebackend.ConfigForResource) { cfg.Transformer = prefixed("old") })
	r.unsafeDeletion = false
	const secret = "correct horse battery staple"
	p := pod("a")
	p.Annotations = map[string]string{"secret": secret}
	first := create(t, r, p)
	if _, err := s.Backup(new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s: the secret can be read (%v)", f, err)
		}
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
	// A value moved to another key is not accepted.
	e, _ := s.db.Get(podKey("a"))
	if _, _, ok, err := s.db.Put(t.Context(), podKey("b"), e.Value, 0, 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := r.Get(t.Context(), podKey("b"), storage.GetOptions{}, &example.Pod{}); !storage.IsInternalError(err) {
		t.Errorf("a value of another key: %v", err)
	}
	same := func(r *resource) *example.Pod {
		t.Helper()
		out := &example.Pod{}
		err := r.GuaranteedUpdate(t.Context(), podKey("a"), out, false, nil, storage.SimpleUpdate(func(obj kruntime.Object) (kruntime.Object, error) { return obj, nil }), nil)
		if err != nil || out.Annotations["secret"] != secret {
			t.Fatalf("%+v, %v", out, err)
		}
		return out
	}
	if out := same(r); out.ResourceVersion != first.ResourceVersion {
		t.Error("an update that changes nothing was written")
	}
	r = podsOf(t, s, func(cfg *storagebackend.ConfigForResource) { cfg.Transformer = prefixed("new", "old") })
	second := same(r)
	if second.ResourceVersion == first.ResourceVersion {
		t.Error("what the old key encrypted was not written anew")
	}
	if e, _ := s.db.Get(podKey("a")); !bytes.HasPrefix(e.Value, []byte("k8s:enc:aesgcm:v1:new:")) {
		t.Errorf("stored: %.40q", e.Value)
	}
	if same(r).ResourceVersion != second.ResourceVersion {
		t.Error("written anew twice")
	}
}

func TestTooLarge(t *testing.T) {
	r := pods(t)
	large := pod("large")
	large.Annotations = map[string]string{"a": strings.Repeat("x", MaxObject-1000)}
	create(t, r, large)
	huge := pod("huge")
	huge.Annotations = map[string]string{"a": strings.Repeat("x", MaxObject)}
	err := r.Create(t.Context(), podKey("huge"), huge, nil, 0)
	if !apierrors.IsRequestEntityTooLargeError(err) || !strings.Contains(err.Error(), fmt.Sprint(MaxObject)) {
		t.Errorf("%v", err)
	}
	if err := r.Get(t.Context(), podKey("huge"), storage.GetOptions{}, huge); !storage.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

// TestTimeToLive: an update without a word about it keeps the end an object
// has; one with a time to live sets it anew.
func TestTimeToLive(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_000_000, 0))
	s, err := Open(Config{Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := podsOf(t, s)
	if err := r.Create(t.Context(), podKey("a"), pod("a"), nil, 100); err != nil {
		t.Fatal(err)
	}
	ends := func() int64 {
		e, _ := s.db.Get(podKey("a"))
		return e.Expires/1000 - 1_000_000
	}
	if ends() != 100 {
		t.Errorf("ends after %d s", ends())
	}
	clock.SetTime(clock.Now().Add(60 * time.Second))
	var seen int64
	update := func(ttl *uint64, suggestion kruntime.Object, l string) {
		t.Helper()
		out := &example.Pod{}
		err := r.GuaranteedUpdate(t.Context(), podKey("a"), out, false, nil, func(obj kruntime.Object, meta storage.ResponseMeta) (kruntime.Object, *uint64, error) {
			seen = meta.TTL
			p := obj.(*example.Pod)
			p.Labels = map[string]string{"l": l}
			return p, ttl, nil
		}, suggestion)
		if err != nil {
			t.Fatal(err)
		}
	}
	update(nil, nil, "1")
	if seen != 40 || ends() != 100 {
		t.Errorf("%d s remained, ends after %d", seen, ends())
	}
	cached := &example.Pod{}
	if err := r.Get(t.Context(), podKey("a"), storage.GetOptions{}, cached); err != nil {
		t.Fatal(err)
	}
	update(nil, cached, "2")
	if ends() != 100 {
		t.Errorf("with a suggestion: ends after %d", ends())
	}
	ttl := uint64(5)
	update(&ttl, nil, "3")
	if ends() != 65 {
		t.Errorf("ends after %d", ends())
	}
}

// TestDiskFull: what a client is told.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1200k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := openStore(t, dir)
	r := podsOf(t, s)
	create(t, r, pod("a"))
	large := pod("large")
	large.Annotations = map[string]string{"a": strings.Repeat("x", 1200<<10)}
	full := func(err error) {
		t.Helper()
		var status apierrors.APIStatus
		if !errors.As(err, &status) || status.Status().Code != http.StatusInsufficientStorage || !errors.Is(err, unix.ENOSPC) ||
			!strings.Contains(status.Status().Message, "no space left on device") {
			t.Errorf("%v", err)
		}
	}
	full(r.Create(t.Context(), podKey("large"), large, nil, 0))
	full(r.GuaranteedUpdate(t.Context(), podKey("a"), &example.Pod{}, false, nil, storage.SimpleUpdate(func(kruntime.Object) (kruntime.Object, error) { return large, nil }), nil))
	out := &example.Pod{}
	if err := r.Get(t.Context(), podKey("a"), storage.GetOptions{}, out); err != nil || out.Annotations != nil {
		t.Errorf("%+v, %v", out, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	large.ResourceVersion = ""
	create(t, r, large)
}

// TestUnstructured: the storage of a custom resource has no Go type.
func TestUnstructured(t *testing.T) {
	s := openStore(t, "")
	kind := schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Thing"}
	newThing := func() kruntime.Object {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(kind)
		return u
	}
	cfg := testConfig()
	cfg.Codec = unstructured.UnstructuredJSONScheme
	cfg.Transformer = nil
	cfg.Prefix = "/registry"
	decorated, destroy, err := s.Decorator()(cfg, "/example.com/things", nil, newThing, nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer destroy()
	thing := newThing().(*unstructured.Unstructured)
	thing.SetName("a")
	thing.Object["spec"] = map[string]any{"size": int64(3)}
	out := newThing().(*unstructured.Unstructured)
	if err := decorated.Create(t.Context(), "/example.com/things/a", thing, out, 0); err != nil {
		t.Fatal(err)
	}
	if e, _ := s.db.Get("/registry/example.com/things/a"); e == nil {
		t.Error("stored elsewhere")
	}
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("example.com/v1")
	if err := decorated.GetList(t.Context(), "/example.com/things/", storage.ListOptions{Recursive: true, Predicate: storage.Everything}, list); err != nil || len(list.Items) != 1 || list.Items[0].GetResourceVersion() != out.GetResourceVersion() {
		t.Fatalf("%+v, %v", list, err)
	}
	yes := true
	opts := storage.ListOptions{Recursive: true, SendInitialEvents: &yes, Predicate: storage.Everything}
	opts.Predicate.AllowWatchBookmarks = true
	w, err := decorated.Watch(t.Context(), "/example.com/things/", opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if ev := <-w.ResultChan(); ev.Type != watch.Added || ev.Object.(*unstructured.Unstructured).GetName() != "a" {
		t.Errorf("%+v", ev)
	}
	ev := <-w.ResultChan()
	if u := ev.Object.(*unstructured.Unstructured); ev.Type != watch.Bookmark || u.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" || u.GetResourceVersion() != out.GetResourceVersion() {
		t.Errorf("%+v", ev)
	}
}

// TestSlowWatch: a client that doesn't read costs a few events, whatever
// happens meanwhile, and is told that it was too slow when it reads again.
func TestSlowWatch(t *testing.T) {
	r := podsOf(t, openStore(t, ""))
	first := create(t, r, pod("a"))
	var slow []watch.Interface
	for range 50 {
		w, err := r.Watch(t.Context(), "/pods/", storage.ListOptions{Recursive: true, ResourceVersion: first.ResourceVersion, Predicate: storage.Everything})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		slow = append(slow, w)
	}
	const size, n = 100 << 10, 400
	big := strings.Repeat("x", size)
	for i := range n {
		label(t, r, "a", big[:size-i])
	}
	// 50 watches and 40 MB of events: held are the store's past (8 MiB) and
	// what watches have taken, which they share.
	if held := heap() >> 20; held > 40 {
		t.Errorf("%d MiB are held", held)
	}
	for _, w := range slow {
		last := first.ResourceVersion
		var ended *metav1.Status
		for ev := range w.ResultChan() {
			if ev.Type == watch.Error {
				ended = ev.Object.(*metav1.Status)
				continue
			}
			obj := ev.Object
			if shared, ok := obj.(kruntime.CacheableObject); ok {
				obj = shared.GetObject()
			}
			p := obj.(*example.Pod)
			if next := fmt.Sprint(mustParse(t, last) + 1); p.ResourceVersion != next {
				t.Fatalf("%s after %s", p.ResourceVersion, last)
			}
			last = p.ResourceVersion
		}
		if ended == nil || ended.Code != http.StatusGone || ended.Reason != metav1.StatusReasonExpired {
			t.Fatalf("ended with %+v", ended)
		}
	}
}

func mustParse(t *testing.T, rv string) uint64 {
	t.Helper()
	n, err := storage.APIObjectVersioner{}.ParseResourceVersion(rv)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestManyWatches: a thousand watches see an event, decoded once, and leave
// nothing behind.
func TestManyWatches(t *testing.T) {
	counting := &counter{Codec: testConfig().Codec}
	r := podsOf(t, openStore(t, ""), func(cfg *storagebackend.ConfigForResource) { cfg.Codec = counting })
	created := create(t, r, pod("a"))
	before, goroutines := heap(), runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	var all []watch.Interface
	for range 1000 {
		w, err := r.Watch(ctx, "/pods/", storage.ListOptions{Recursive: true, ResourceVersion: created.ResourceVersion, Predicate: storage.Everything})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	for r.watches.Load() < 1000 {
		time.Sleep(time.Millisecond)
	}
	counting.mu.Lock()
	counting.n = 0
	counting.mu.Unlock()
	changed := label(t, r, "a", "x")
	var encoded int
	var once sync.Mutex
	encode := func(obj kruntime.Object, w io.Writer) error {
		once.Lock()
		defer once.Unlock()
		encoded++
		_, err := io.WriteString(w, obj.(*example.Pod).ResourceVersion)
		return err
	}
	var wg sync.WaitGroup
	for _, w := range all {
		wg.Go(func() {
			ev := <-w.ResultChan()
			var buf bytes.Buffer
			if err := ev.Object.(kruntime.CacheableObject).CacheEncode("test", encode, &buf); err != nil || buf.String() != changed.ResourceVersion || ev.Type != watch.Modified {
				t.Errorf("%+v: %q, %v", ev, &buf, err)
			}
		})
	}
	wg.Wait()
	counting.mu.Lock()
	// Two are the update's own; a collection between two watches costs another.
	if n := counting.n; n > 100 || encoded > 100 {
		t.Errorf("decoded %d times and encoded %d times", n, encoded)
	}
	counting.mu.Unlock()
	cancel()
	for _, w := range all {
		for range w.ResultChan() {
		}
	}
	all = nil
	for runtime.NumGoroutine() > goroutines {
		time.Sleep(time.Millisecond)
	}
	if after := heap(); after > before+(2<<20) {
		t.Errorf("%d KiB before, %d after", before>>10, after>>10)
	}
}

type counter struct {
	kruntime.Codec
	mu sync.Mutex
	n  int
}

func (c *counter) Decode(data []byte, defaults *schema.GroupVersionKind, into kruntime.Object) (kruntime.Object, *schema.GroupVersionKind, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.Codec.Decode(data, defaults, into)
}

// TestBackup: what is restored is what was backed up, for another store.
func TestBackup(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := podsOf(t, s)
	create(t, r, pod("a"))
	var backup bytes.Buffer
	if _, err := s.Backup(&backup); err != nil {
		t.Fatal(err)
	}
	create(t, r, pod("b"))
	dir := t.TempDir()
	rev, err := Restore(&backup, dir)
	if err != nil {
		t.Fatal(err)
	}
	list := &example.PodList{}
	opts := storage.ListOptions{Recursive: true, Predicate: storage.Everything}
	if err := podsOf(t, openStore(t, dir)).GetList(t.Context(), "/pods/", opts, list); err != nil || len(list.Items) != 1 || list.ResourceVersion != fmt.Sprint(rev) {
		t.Errorf("%+v, %v", list, err)
	}
	var locked *LockedError
	if _, err := Open(Config{Dir: dir}); !errors.As(err, &locked) || !strings.Contains(err.Error(), fmt.Sprint("PID ", os.Getpid())) {
		t.Errorf("opened twice: %v", err)
	}
}
