package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// TestThousandWatches: each sees an event, and when they end nothing is left.
func TestThousandWatches(t *testing.T) {
	const n = 1000
	ns := namespace(t, "watched")
	c := inProcess(t).CoreV1().ConfigMaps(ns)
	first, err := c.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	tr := transport(true)
	var opened, seen, ended sync.WaitGroup
	opened.Add(n)
	seen.Add(n)
	for range n {
		ended.Go(func() {
			defer func() {
				if t.Failed() {
					cancel()
				}
			}()
			url := fmt.Sprintf("https://%s/api/v1/namespaces/%s/configmaps?watch=true&resourceVersion=%s", node.addr, ns, first.ResourceVersion)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				t.Error(err)
			}
			resp, err := tr.RoundTrip(req)
			opened.Done()
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%+v, %v", resp, err)
				seen.Done()
				return
			}
			defer resp.Body.Close()
			var ev struct {
				Type   string
				Object corev1.ConfigMap
			}
			err = json.NewDecoder(bufio.NewReaderSize(resp.Body, 512)).Decode(&ev)
			if err != nil || ev.Type != "MODIFIED" || ev.Object.Data["k"] != "v" {
				t.Errorf("%+v, %v", ev, err)
			}
			seen.Done()
			<-ctx.Done()
		})
	}
	opened.Wait()
	open := heap()
	start := time.Now()
	o := first.DeepCopy()
	o.Data = map[string]string{"k": "v"}
	if _, err := c.Update(t.Context(), o, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	seen.Wait()
	took := time.Since(start)
	cancel()
	ended.Wait()
	tr.CloseIdleConnections()
	// Each had three at least; the server's own come and go.
	until(t, "the watches' goroutines have ended", func() bool { return runtime.NumGoroutine() < goroutines+n/4 })
	after := heap()
	t.Logf("%d watches: an event at all of them in %v; heap %d MiB before, %d with all (clients included), %d after", n, took, before, open, after)
	if after > before+8 {
		t.Errorf("%d MiB before, %d after", before, after)
	}
}

// TestSlowWatches: clients that open a watch and never read, while much
// happens, hold next to nothing.
func TestSlowWatches(t *testing.T) {
	const watches, size, updates = 200, 100 << 10, 200
	ns := namespace(t, "slow")
	c := inProcess(t).CoreV1().ConfigMaps(ns)
	o, err := c.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	for range watches {
		send(t, raw(t), fmt.Sprintf("GET /api/v1/namespaces/%s/configmaps?watch=true&resourceVersion=%s HTTP/1.1\nHost: x\n\n", ns, o.ResourceVersion))
	}
	for range updates {
		o.Data = map[string]string{"data": rand.String(size)}
		if o, err = c.Update(t.Context(), o, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	held := heap() - before
	t.Logf("%d watches that don't read, %d MiB of events: %d MiB held", watches, updates*size>>20, held)
	// Each has the one event it is writing, in some stages of encoding: not all
	// that happened, which would be 4 GB.
	if held > watches {
		t.Errorf("%d MiB are held", held)
	}
}

// TestSlowLists: clients that ask for everything and never read the answer.
func TestSlowLists(t *testing.T) {
	const lists, n, size = 40, 500, 10 << 10
	ns := namespace(t, "lists")
	fill(t, ns, n, size)
	before := heap()
	for range lists {
		send(t, raw(t), fmt.Sprintf("GET /api/v1/namespaces/%s/configmaps HTTP/1.1\nHost: x\n\n", ns))
	}
	until(t, "the answers wait to be read", func() bool { return waiting("ServeHTTP") >= lists })
	time.Sleep(time.Second)
	held := heap() - before
	t.Logf("%d lists of %d MiB that are not read: %d MiB held", lists, n*size>>20, held)
	// Until the server's patience ends, which internal/apiserver tests: the
	// list's objects, not their encoding too.
	if held > lists*n*size>>20*2 {
		t.Errorf("%d MiB are held", held)
	}
	// The others are served all the same.
	if _, err := client(t).CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{Limit: 1}); err != nil {
		t.Error(err)
	}
}

// waiting counts goroutines in whose stack a function is.
func waiting(fn string) int {
	buf := make([]byte, 64<<20)
	n := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, fn) {
			n++
		}
	}
	return n
}

// TestSlowUploads: clients that announce large requests and send a byte now
// and then.
func TestSlowUploads(t *testing.T) {
	const uploads = 300
	before := heap()
	for range uploads {
		send(t, raw(t), "POST /api/v1/namespaces/default/configmaps HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: 3000000\n\n{\"a")
	}
	time.Sleep(200 * time.Millisecond)
	held := heap() - before
	t.Logf("%d uploads of 3 MB that don't go on: %d MiB held, clients included", uploads, held)
	if held > 64 {
		t.Errorf("%d MiB are held", held)
	}
	if _, err := client(t).CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	// A header that never ends is not read for ever.
	c := raw(t)
	send(t, c, "GET / HTTP/1.1\nHost: x\n")
	for i := range 40 {
		if _, err := io.WriteString(c, fmt.Sprintf("X-%d: %s\r\n", i, strings.Repeat("y", 64<<10))); err != nil {
			return
		}
	}
	answer, err := io.ReadAll(c)
	if err == nil && !strings.Contains(string(answer), " 431 ") {
		t.Errorf("2.5 MB of header: %.200q", answer)
	}
}
