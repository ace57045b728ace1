package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// served fails the test when the server doesn't answer others.
func served(t *testing.T) {
	t.Helper()
	if _, err := client(t).CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("others are served: %v", err)
	}
}

// frames is a connection of HTTP/2 on which nothing is done unless the test does
// it, and the header of a request in it.
func frames(t *testing.T, path string) (*tls.Conn, *http2.Framer, []byte) {
	t.Helper()
	cfg := node.tls.Clone()
	cfg.NextProtos, cfg.ServerName = []string{"h2"}, "localhost"
	c, err := tls.Dial("tcp", node.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var header bytes.Buffer
	enc := hpack.NewEncoder(&header)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", path}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return c, f, header.Bytes()
}

// TestRapidReset: requests that are taken back as soon as they are made
// (CVE-2023-44487) are not carried out all at once.
func TestRapidReset(t *testing.T) {
	ns := namespace(t, "reset")
	fill(t, ns, 200, 1000)
	before, running := heap(), runtime.NumGoroutine()
	c, f, header := frames(t, "/api/v1/namespaces/"+ns+"/configmaps")
	go io.Copy(io.Discard, c) //nolint:errcheck // ends with the connection
	most, others := 0, waiting("ServeHTTP")
	for i := range 20_000 {
		id := uint32(2*i + 1)
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: header, EndStream: true, EndHeaders: true})
		if err == nil {
			err = f.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil {
			t.Logf("the server ended the connection after %d", i) // its right
			break
		}
		if i%500 == 0 {
			most = max(most, waiting("ServeHTTP"))
		}
	}
	served(t)
	const streams, goroutines = 100, 3 // of a connection; of a request
	if most-others > streams*goroutines {
		t.Errorf("%d requests were carried out at once", most-others)
	}
	c.Close()
	until(t, "its requests have ended", func() bool { return runtime.NumGoroutine() < running+50 })
	until(t, "their memory is free", func() bool { return heap() <= before+16 })
}

// TestEndlessFrames: what has no end in HTTP/2 is ended by the server: a header
// in ever more pieces (CVE-2023-45288), and control frames whose answers
// nobody reads.
func TestEndlessFrames(t *testing.T) {
	flood := func(name string, write func(f *http2.Framer, header []byte) error) {
		t.Run(name, func(t *testing.T) {
			before := heap()
			c, f, header := frames(t, "/api/v1/namespaces")
			var err error
			for i := 0; err == nil && i < 500_000; i++ {
				err = write(f, header)
				header = nil
			}
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the server goes on reading: %v", err)
			}
			c.Close()
			if after := heap(); after > before+16 {
				t.Errorf("%d MiB before, %d after", before, after)
			}
			served(t)
		})
	}
	var piece bytes.Buffer
	enc := hpack.NewEncoder(&piece)
	for i := range 100 {
		if err := enc.WriteField(hpack.HeaderField{Name: fmt.Sprint("x-", i), Value: strings.Repeat("y", 100), Sensitive: true}); err != nil {
			t.Fatal(err)
		}
	}
	flood("continuation", func(f *http2.Framer, header []byte) error {
		if header != nil {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: header})
		}
		return f.WriteContinuation(1, false, piece.Bytes())
	})
	flood("ping", func(f *http2.Framer, _ []byte) error { return f.WritePing(false, [8]byte{}) })
}

// do sends one request and returns the answer's code and beginning.
func do(t *testing.T, method, path string, header map[string]string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+node.addr+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	tr := transport(false)
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %.100s: %v", method, path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// TestHostileBodies: what unpacks to more than it is, what nests without end, and
// what is not what it says: refused as the client's error, without the memory.
func TestHostileBodies(t *testing.T) {
	const maps = "/api/v1/namespaces/default/configmaps"
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(z, zeros{}, 1<<28); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	laughs := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), ", "))
	}
	garbage := make([]byte, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range garbage {
		garbage[i] = byte(rnd.Uint32())
	}
	const million = 1_000_000
	for _, c := range []struct {
		name, method, kind, encoding, body string
		codes                              []int
	}{
		{"a gzip bomb", "POST", "application/json", "gzip", bomb.String(), []int{400, 415}},
		{"nested JSON", "POST", "application/json", "", strings.Repeat("[", million), []int{400}},
		{"nested objects", "POST", "application/json", "", strings.Repeat(`{"a":`, million/2), []int{400}},
		{"nested where anything may be", "POST", "application/json", "", `{"metadata":{"managedFields":[{"fieldsV1":` + strings.Repeat(`{"a":`, million/4) + "1" + strings.Repeat("}", million/4) + `}]}}`, []int{400}},
		{"nested YAML", "POST", "application/yaml", "", strings.Repeat("[", million), []int{400}},
		{"indented YAML", "POST", "application/yaml", "", strings.Repeat("- ", million/2), []int{400}},
		{"aliases of aliases", "POST", "application/yaml", "", laughs, []int{400}},
		{"a nested patch", "PATCH", "application/merge-patch+json", "", strings.Repeat(`{"a":`, million/2), []int{400, 404}},
		{"a nested apply", "PATCH", "application/apply-patch+yaml", "", strings.Repeat("[", million), []int{400}},
		{"many patches", "PATCH", "application/json-patch+json", "", "[" + strings.Repeat(`{"op":"test","path":"/a","value":1},`, 20_000) + `{"op":"test","path":"/a"}]`, []int{413, 404, 400}},
		{"garbage", "POST", "application/vnd.kubernetes.protobuf", "", string(garbage), []int{400}},
		{"garbage after the magic", "POST", "application/vnd.kubernetes.protobuf", "", "k8s\x00" + string(garbage), []int{400}},
		{"lengths beyond the end", "POST", "application/vnd.kubernetes.protobuf", "", "k8s\x00\x0a\x0c\x0a\x02v1\x12\x09ConfigMap\x12\xff\xff\xff\xff\x07", []int{400}},
		{"garbage CBOR", "POST", "application/cbor", "", string(garbage), []int{400, 415}},
		{"nested CBOR", "POST", "application/cbor", "", strings.Repeat("\x81", million), []int{400, 415}},
		{"a form", "POST", "application/x-www-form-urlencoded", "", "a=b", []int{415}},
		{"a patch of no kind", "PATCH", "application/json", "", "{}", []int{415}},
		{"no type", "POST", "text/", "", "{}", []int{415}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := heap()
			path := maps
			if c.method == "PATCH" {
				path += "/nothing?fieldManager=m"
			}
			header := map[string]string{"Content-Type": c.kind}
			if c.encoding != "" {
				header["Content-Encoding"] = c.encoding
			}
			code, answer := do(t, c.method, path, header, strings.NewReader(c.body))
			found := false
			for _, want := range c.codes {
				found = found || code == want
			}
			if !found || strings.Contains(answer, "panic") {
				t.Errorf("%d, want one of %v: %.300s", code, c.codes, answer)
			}
			if after := heap(); after > before+32 {
				t.Errorf("%d MiB before, %d after", before, after)
			}
			served(t)
		})
	}
}

// TestHostilePaths: none leads out of the API or to another object, and none is
// an error of the server's.
func TestHostilePaths(t *testing.T) {
	for _, path := range []string{
		"/../etc/passwd", "/api/v1/../../../etc/passwd", "/api/v1/namespaces/default/configmaps/..%2f..%2fsecrets", "/api/v1/namespaces/%2e%2e/secrets",
		"/api/v1/namespaces/default%2fsecrets/x/configmaps", "/api/v1/namespaces//configmaps/x", "/api/v1/namespaces/default/configmaps/%00", "/api/v1/namespaces/default/configmaps/x%0d%0aX-Y:%20z",
		"/api/v1/namespaces/default/configmaps/" + strings.Repeat("x", 100_000), "/api/v1/namespaces/default/configmaps/x;y=z", "/%61pi/v1/namespaces/default/configmaps/nothing", "/api/v1/proxy/nodes/x", "/api/v1/watch/../secrets/x",
		"/api/v1/namespaces/default/configmaps?labelSelector=a+in+(" + strings.TrimSuffix(strings.Repeat("b,", 50_000), ",") + ")",
		"/api/v1/namespaces/default/configmaps?fieldSelector=" + strings.TrimSuffix(strings.Repeat("metadata.name!=b,", 10_000), ","),
		"/api/v1/namespaces/default/configmaps?labelSelector=" + strings.Repeat("(", 100_000), "/api/v1/namespaces/default/configmaps?limit=-1", "/api/v1/namespaces/default/configmaps?limit=99999999999999999999&continue=%ff",
		"/api/v1/namespaces/default/configmaps?timeout=-1s", "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=-1&resourceVersion=x",
	} {
		code, answer := do(t, "GET", path, nil, nil)
		if code >= 500 || strings.Contains(answer, "root:") {
			t.Errorf("%.100s: %d %.300s", path, code, answer)
		}
	}
	served(t)
}

// TestTooManyRequests: one client's requests that don't end are not all the
// server does: the rest is told to come back, and others and administrators
// are served.
func TestTooManyRequests(t *testing.T) {
	ctx := t.Context()
	ns := namespace(t, "busy")
	c := inProcess(t)
	if _, err := c.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "busy"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "busy"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "busy", Namespace: ns}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "busy", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	anonymous := node.tls.Clone()
	anonymous.Certificates, anonymous.GetClientCertificate = nil, nil
	anonymous.NextProtos, anonymous.ServerName = []string{"http/1.1"}, "localhost"
	request := fmt.Sprintf("POST /api/v1/namespaces/%s/configmaps HTTP/1.1\nHost: x\nAuthorization: Bearer %s\nContent-Type: application/json\nContent-Length: ", ns, token.Status.Token)
	open := func(rest string) *tls.Conn {
		conn, err := tls.Dial("tcp", node.addr, anonymous)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		send(t, conn, request+rest)
		return conn
	}
	const inFlight = 200 // upstream's --max-mutating-requests-inflight
	for range inFlight + 20 {
		open("1000000\n\n{\"a")
	}
	until(t, "the server has them", func() bool { return waiting("createHandler") >= inFlight })
	conn := open("2\n\n{}")
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	if err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 429 ") || !strings.Contains(string(answer[:n]), "Retry-After: ") {
		t.Errorf("%v: %q", err, answer[:n])
	}
	served(t)
	if _, err := client(t).CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{}); err != nil {
		t.Errorf("the administrator: %v", err)
	}
}
