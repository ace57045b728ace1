package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// FuzzRequests: whatever an administrator sends, the server answers, doesn't
// panic, and goes on.
func FuzzRequests(f *testing.F) {
	for _, path := range []string{
		"/api/v1/namespaces/default/configmaps?limit=1&continue=x", "/api/v1/pods?fieldSelector=spec.nodeName%3Da&labelSelector=,,", "/apis/apps/v1/deployments?watch=1&timeoutSeconds=1&resourceVersion=-1",
		"/api/v1/namespaces/default/pods/x/exec?command=", "/api/v1/namespaces/default/services/https:a:b/proxy/%2e%2e/", "/apis/", "/apis/a/b/c/d/e/f/g", "/openapi/v3/../v2?hash=%00",
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "/metrics?x", "/debug/pprof/cmdline", "/apis/metrics.k8s.io/v1/nodes/x", "//api//v1", "/api/v1/namespaces/%00/secrets", "/readyz/nothing?verbose&exclude=start",
	} {
		f.Add("GET", path, "", "application/json", []byte(nil))
	}
	f.Add("POST", "/api/v1/namespaces/default/configmaps", "dryRun=All&fieldValidation=Strict", "application/json", []byte(`{"metadata":{"name":"a"},"data":{"a":1}}`))
	f.Add("POST", "/api/v1/namespaces/default/pods", "dryRun=All", "application/yaml", []byte("metadata: {name: a}\nspec: {containers: [{name: c, image: i}, *a]}"))
	f.Add("POST", "/api/v1/namespaces/default/pods", "dryRun=All", "application/vnd.kubernetes.protobuf", []byte("k8s\x00\x0a\x04\x0a\x02v1\xff\xff"))
	f.Add("PATCH", "/api/v1/namespaces/default", "dryRun=All", "application/json-patch+json", []byte(`[{"op":"copy","from":"","path":"/a"}]`))
	f.Add("PATCH", "/api/v1/namespaces/default", "dryRun=All&fieldManager=f", "application/apply-patch+yaml", []byte("a: &a [*a]"))
	f.Add("PATCH", "/api/v1/namespaces/default", "dryRun=All", "application/strategic-merge-patch+json", []byte(`{"$patch":"replace","metadata":null}`))
	f.Add("DELETE", "/api/v1/namespaces/default/configmaps", "dryRun=All", "application/json", []byte(`{"preconditions":{"uid":""},"gracePeriodSeconds":-1}`))
	f.Add("PUT", "/apis/apps/v1/namespaces/default/deployments/x/scale", "dryRun=All", "application/cbor", []byte{0xbf, 0xff})
	f.Add("OPTIONS", "*", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, method, path, query, kind string, body []byte) {
		w := start(t)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, w.Loopback().Host, bytes.NewReader(body))
		if err != nil || strings.Contains(path+query, "timeout") && method != http.MethodGet {
			t.Skip()
		}
		req.URL.Path, req.URL.RawQuery = path, query
		if p, q, ok := strings.Cut(path, "?"); ok {
			req.URL.Path, req.URL.RawQuery = p, q
		}
		req.Header.Set("Content-Type", kind)
		resp, err := httpClient(t, w.Loopback()).Do(req)
		if err != nil {
			if strings.Contains(err.Error(), "panic") {
				t.Fatal(err)
			}
			return
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if strings.Contains(string(answer), "caused apiserver to panic") {
			t.Fatalf("%s %s: %s", method, path, answer)
		}
	})
}

// TestFlood: many writers at once all succeed, and every watch tells all of it,
// once.
func TestFlood(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	k := clients(t, w.Loopback())
	const writers, each = 32, 20
	var group errgroup.Group
	for i := range writers {
		group.Go(func() error {
			for j := range each {
				cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c-%d-%d", i, j)}}
				if _, err := k.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	// Every watch sees every object once, in the order of the store.
	const watches = 50
	var seen sync.WaitGroup
	for range watches {
		events, err := k.CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			t.Fatal(err)
		}
		seen.Go(func() {
			defer events.Stop()
			names, last := map[string]bool{}, ""
			for e := range events.ResultChan() {
				m, ok := e.Object.(*corev1.ConfigMap)
				if !ok || e.Type != watch.Added || names[m.Name] {
					t.Errorf("%v after %d", e, len(names))
					return
				}
				names[m.Name], last = true, m.ResourceVersion
				if len(names) == writers*each {
					return
				}
			}
			t.Errorf("a watch ended after %d, at %s", len(names), last)
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	seen.Wait()
}

// TestSlowReader: who asks for much and reads nothing holds neither the others
// nor memory, and is gone when it goes.
func TestSlowReader(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	k := clients(t, w.Loopback())
	slow, err := k.CoreV1().RESTClient().Get().Namespace(ns).Resource("configmaps").Param("watch", "true").Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	for i := range 30 {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}, BinaryData: map[string][]byte{"b": make([]byte, 200<<10)}}
		if _, err := k.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := k.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{Limit: 5}); err != nil || len(l.Items) != 5 {
		t.Errorf("%v", err)
	}
}
