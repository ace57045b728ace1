package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
)

// blobs is a custom resource that may hold anything: no validation of ours or
// upstream's says how large one may be but the store's.
var blobs = schema.GroupVersionResource{Group: "test.unipod.dev", Version: "v1", Resource: "blobs"}

func makeBlobs(t *testing.T) dynamic.ResourceInterface {
	t.Helper()
	c, err := apiextensions.NewForConfig(node.config)
	if err != nil {
		t.Fatal(err)
	}
	crds := c.ApiextensionsV1().CustomResourceDefinitions()
	name := blobs.Resource + "." + blobs.Group
	_, err = crds.Create(t.Context(), &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: blobs.Group, Scope: apiextensionsv1.ClusterScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: blobs.Resource, Singular: "blob", Kind: "Blob"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: blobs.Version, Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: ptr.To(true)}},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = crds.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	d, err := dynamic.NewForConfig(node.config)
	if err != nil {
		t.Fatal(err)
	}
	r := d.Resource(blobs)
	until(t, "the custom resource is served", func() bool {
		_, err := r.List(t.Context(), metav1.ListOptions{Limit: 1})
		return err == nil
	})
	return r
}

func blob(name string, size int) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": blobs.Group + "/" + blobs.Version, "kind": "Blob",
		"metadata": map[string]any{"name": name},
		"data":     strings.Repeat("x", size),
	}}
}

// TestLargeObjects: 1.5 MB are kept; what is larger is refused in words, by
// every verb, and changes nothing.
func TestLargeObjects(t *testing.T) {
	r := makeBlobs(t)
	ctx := t.Context()
	const large = 1_500_000
	if _, err := r.Create(ctx, blob("large", large), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Get(ctx, "large", metav1.GetOptions{})
	if err != nil || len(got.Object["data"].(string)) != large {
		t.Fatalf("read back: %v", err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !apierrors.IsRequestEntityTooLargeError(err) || !strings.Contains(err.Error(), "at most 1572864") {
			t.Errorf("%s: %.300v", what, err)
		}
	}
	const larger = 1_600_000
	_, err = r.Create(ctx, blob("larger", larger), metav1.CreateOptions{})
	refused("created", err)
	got.Object["data"] = strings.Repeat("y", larger)
	_, err = r.Update(ctx, got, metav1.UpdateOptions{})
	refused("updated", err)
	patch, err := json.Marshal(map[string]any{"more": strings.Repeat("z", 200_000)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Patch(ctx, "large", types.MergePatchType, patch, metav1.PatchOptions{})
	refused("patched", err)
	// What is larger than a request may be never reaches the store.
	if _, err := r.Create(ctx, blob("largest", 4<<20), metav1.CreateOptions{}); !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a request of 4 MiB: %.300v", err)
	}
	if got, err = r.Get(ctx, "large", metav1.GetOptions{}); err != nil || strings.Trim(got.Object["data"].(string), "x") != "" || got.Object["more"] != nil {
		t.Errorf("something was changed: %v", err)
	}
	if _, err := r.Get(ctx, "larger", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%.300v", err)
	}
}

// fill makes config maps, n of them, with a label that has three values.
func fill(t *testing.T, ns string, n, size int) {
	t.Helper()
	c := inProcess(t).CoreV1().ConfigMaps(ns)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || t.Failed() {
					return
				}
				_, err := c.Create(t.Context(), &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cm-%05d", i), Labels: map[string]string{"third": fmt.Sprint(i % 3)}},
					Data:       map[string]string{"data": rand.String(size)},
				}, metav1.CreateOptions{})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// TestManyObjects: ten thousand objects, read in pages while they change: a
// list has each object once, as it was at the list's beginning.
func TestManyObjects(t *testing.T) {
	const n = 10_000
	ns := namespace(t, "many")
	fill(t, ns, n, 100)
	ctx := t.Context()
	c := client(t).CoreV1().ConfigMaps(ns)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := w; ; i += 2 {
				select {
				case <-stop:
					return
				default:
				}
				// Far ahead of the pages and behind them.
				if err := c.Delete(ctx, fmt.Sprintf("cm-%05d", n-1-i%2000), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
					t.Error(err)
				}
				if _, err := c.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "cm-9x"}}, metav1.CreateOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	opts := metav1.ListOptions{Limit: 500}
	seen := map[string]bool{}
	version := ""
	for pages := 0; ; pages++ {
		list, err := c.List(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		if version == "" {
			version = list.ResourceVersion
		}
		if list.ResourceVersion != version {
			t.Fatalf("page %d is of version %s, the first of %s", pages, list.ResourceVersion, version)
		}
		if len(list.Items) > 500 {
			t.Fatalf("a page of %d", len(list.Items))
		}
		for _, o := range list.Items {
			if seen[o.Name] {
				t.Fatalf("%s is there twice", o.Name)
			}
			seen[o.Name] = true
		}
		if left := list.RemainingItemCount; list.Continue != "" && (left == nil || *left <= 0) {
			t.Fatalf("page %d: more to come, and %v left", pages, left)
		}
		if opts.Continue = list.Continue; opts.Continue == "" {
			break
		}
	}
	close(stop)
	wg.Wait()
	// What was changed before the first page is not what was filled in, but the
	// list still is one moment's.
	whole, err := c.List(ctx, metav1.ListOptions{ResourceVersion: version, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.Items) != len(seen) {
		t.Errorf("%d objects in pages, %d at once", len(seen), len(whole.Items))
	}
	for _, o := range whole.Items {
		if !seen[o.Name] {
			t.Errorf("%s is in no page", o.Name)
		}
	}
	if len(seen) < n-100 {
		t.Errorf("%d objects", len(seen))
	}
	// A selector leaves two of three out, and pages are full all the same.
	got := 0
	for opts := (metav1.ListOptions{Limit: 400, LabelSelector: "third=1"}); ; {
		list, err := c.List(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		got += len(list.Items)
		if opts.Continue = list.Continue; opts.Continue == "" {
			break
		}
		if len(list.Items) != 400 {
			t.Fatalf("a page of %d before the last", len(list.Items))
		}
	}
	if got < (n-2000)/3 {
		t.Errorf("%d objects with a label every third has", got)
	}
	// A continue token of another list, or none at all, is refused.
	for _, token := range []string{"x", "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIuLi8uLi8uLi8ifQ"} {
		if _, err := c.List(ctx, metav1.ListOptions{Limit: 1, Continue: token}); !apierrors.IsBadRequest(err) {
			t.Errorf("continue token %q: %v", token, err)
		}
	}
}

// TestDiskFull: writes fail with a sentence and the code for it, reads and
// watches go on, and all is well again when there is room.
func TestDiskFull(t *testing.T) {
	if !node.small {
		t.Skip("a small file system needs root")
	}
	ns := namespace(t, "full")
	ctx := t.Context()
	c := client(t).CoreV1().ConfigMaps(ns)
	object := func(name string, size int) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"data": rand.String(size)}}
	}
	first, err := c.Create(ctx, object("first", 10), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, object("more-0", 10), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := c.Watch(ctx, metav1.ListOptions{ResourceVersion: first.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ballast := filepath.Join(node.data, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(ballast)
	if _, err := io.Copy(f, zeros{}); err == nil {
		t.Fatal("the disk never got full")
	}
	f.Close()
	// The log may have room for a little.
	for i := range 500 {
		if _, err = c.Create(ctx, object(fmt.Sprint("more-", i+1), 8000), metav1.CreateOptions{}); err != nil {
			break
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		var status *apierrors.StatusError
		if !errors.As(err, &status) || status.ErrStatus.Code != http.StatusInsufficientStorage ||
			!strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	refused("created", err)
	_, err = c.Patch(ctx, "applied", types.ApplyPatchType, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"},"data":{"data":"`+rand.String(9000)+`"}}`), metav1.PatchOptions{FieldManager: "test"})
	refused("applied", err)
	// A little is kept for what makes nothing new: one can delete to make room,
	// and what runs can say that it ended.
	if err := c.Delete(ctx, "more-0", metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleted on a full disk: %v", err)
	}
	for i := 0; err == nil || i == 0; i++ {
		if i == 1000 {
			t.Fatal("the disk is not full")
		}
		first.Data["data"] = rand.String(9000)
		var next *corev1.ConfigMap
		if next, err = c.Update(ctx, first, metav1.UpdateOptions{}); err == nil {
			first = next
		}
	}
	refused("updated", err)
	_, err = c.Patch(ctx, "first", types.MergePatchType, []byte(`{"data":{"data":"`+rand.String(9000)+`"}}`), metav1.PatchOptions{})
	refused("patched", err)
	if got, err := c.Get(ctx, "first", metav1.GetOptions{}); err != nil || got.ResourceVersion != first.ResourceVersion {
		t.Errorf("read from a full disk: %+v, %v", got, err)
	}
	if _, err := c.List(ctx, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, object("last", 8000), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for ev := range w.ResultChan() {
		o, ok := ev.Object.(*corev1.ConfigMap)
		if !ok {
			t.Fatalf("the watch ended: %+v", ev)
		}
		if o.Name == "last" {
			break
		}
	}
}

// zeros is endless.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
