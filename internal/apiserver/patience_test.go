package apiserver

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestPatience: a client that doesn't read is left, whatever it speaks; one
// that reads slowly gets everything, and silence is no offence.
func TestPatience(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", h2), func(t *testing.T) { testPatience(t, h2) })
	}
}

func testPatience(t *testing.T, h2 bool) {
	const patience, much = 200 * time.Millisecond, 3 * time.Second
	ended := make(chan error, 1)
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/silent" {
			w.(http.Flusher).Flush()
			time.Sleep(3 * patience)
			_, err := w.Write([]byte("at last"))
			w.(http.Flusher).Flush()
			ended <- err
			return
		}
		// One write is many times what a connection holds.
		_, err := w.Write(bytes.Repeat([]byte("x"), 32<<20))
		ended <- err
	})
	impatient, slow := withPatience(handler, patience), withPatience(handler, much)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			slow.ServeHTTP(w, req)
		} else {
			impatient.ServeHTTP(w, req)
		}
	}))
	srv.EnableHTTP2 = h2
	srv.StartTLS()
	defer srv.Close()
	get := func(path string) *http.Response {
		t.Helper()
		resp, err := srv.Client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if (resp.ProtoMajor == 2) != h2 {
			t.Fatal(resp.Proto)
		}
		return resp
	}
	get("/unread")
	if err := <-ended; err == nil {
		t.Error("everything was written for a client that reads nothing")
	}
	resp := get("/silent")
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "at last" {
		t.Errorf("after a silence: %q, %v", body, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// Slower in all than patience, but never without reading for so long.
	resp = get("/slow")
	n := int64(0)
	for start := time.Now(); time.Since(start) < much+much/4; time.Sleep(10 * time.Millisecond) {
		m, err := io.CopyN(io.Discard, resp.Body, 64<<10)
		if n += m; err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	rest, err := io.Copy(io.Discard, resp.Body)
	if n += rest; err != nil || n != 32<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPatienceHijack: a connection that is taken over is not held to it.
func TestPatienceHijack(t *testing.T) {
	srv := httptest.NewTLSServer(withPatience(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		time.Sleep(50 * time.Millisecond)
		_, _ = io.WriteString(c, "taken over")
	}), 10*time.Millisecond))
	defer srv.Close()
	c, err := tls.Dial("tcp", strings.TrimPrefix(srv.URL, "https://"), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "taken over" {
		t.Errorf("%q, %v", got, err)
	}
}
