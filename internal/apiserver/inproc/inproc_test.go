package inproc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func carry(h http.HandlerFunc) *http.Client {
	l := New(context.Background())
	l.Serve(h)
	return &http.Client{Transport: l}
}

func ask(t *testing.T, ctx context.Context, c *http.Client, body io.Reader) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://unipod.internal/x?y=z", body)
	if err != nil {
		t.Fatal(err)
	}
	return c.Do(req)
}

func TestWhole(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := carry(func(w http.ResponseWriter, req *http.Request) {
		in, err := io.ReadAll(req.Body)
		if err != nil || !Here(req.Context()) || req.RequestURI != "/x?y=z" {
			t.Errorf("request %q, marked %v, %v", req.RequestURI, Here(req.Context()), err)
		}
		w.Header().Set("X-A", "b")
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-A", "late")
		w.Write(bytes.ToUpper(in))
	})
	resp, err := ask(t, t.Context(), c, strings.NewReader("abc"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || string(out) != "ABC" || resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-A") != "b" || resp.ContentLength != 3 {
		t.Errorf("%d %v %q %d %v", resp.StatusCode, resp.Header, out, resp.ContentLength, err)
	}
}

// What is flushed can be read while the handler goes on; closing the body ends
// the handler.
func TestStream(t *testing.T) {
	defer goleak.VerifyNone(t)
	next, ended := make(chan string), make(chan error, 1)
	c := carry(func(w http.ResponseWriter, req *http.Request) {
		w.(http.Flusher).Flush()
		//lint:ignore SA1019 upstream's handlers ask for it
		gone := w.(http.CloseNotifier).CloseNotify()
		for {
			select {
			case s := <-next:
				io.WriteString(w, s)
				w.(http.Flusher).Flush()
			case <-gone:
				_, err := io.WriteString(w, "more")
				ended <- err
				return
			}
		}
	})
	resp, err := ask(t, t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"one", "two"} {
		next <- s
		got := make([]byte, 3)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != s {
			t.Fatalf("%q, %v; want %q", got, err, s)
		}
	}
	resp.Body.Close()
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a write after the client has gone: %v", err)
	}
}

// A handler that writes much waits for its reader.
func TestBounded(t *testing.T) {
	defer goleak.VerifyNone(t)
	const chunk, chunks = 64 << 10, 100
	c := carry(func(w http.ResponseWriter, _ *http.Request) {
		b := make([]byte, chunk)
		for range chunks {
			w.Write(b)
			if n := w.(*writer).buffer.Cap(); n > 4*streamAfter {
				t.Errorf("%d bytes are kept for a reader", n)
			}
		}
	})
	resp, err := ask(t, t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != chunk*chunks || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestEnds(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		c := carry(func(_ http.ResponseWriter, req *http.Request) {
			cancel()
			<-req.Context().Done()
			close(ended)
		})
		if _, err := ask(t, ctx, c, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		<-ended
	})
	t.Run("panic", func(t *testing.T) {
		c := carry(func(http.ResponseWriter, *http.Request) { panic("oh") })
		_, err := ask(t, t.Context(), c, nil)
		if err == nil || !strings.Contains(err.Error(), "/x") || !strings.Contains(err.Error(), "oh") {
			t.Errorf("%v", err)
		}
	})
	t.Run("aborted in the middle", func(t *testing.T) {
		c := carry(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		resp, err := ask(t, t.Context(), c, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); string(b) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("switching protocols", func(t *testing.T) {
		c := carry(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusSwitchingProtocols) })
		if _, err := ask(t, t.Context(), c, nil); !errors.Is(err, ErrUpgrade) {
			t.Errorf("%v", err)
		}
	})
	t.Run("stopped before there is a handler", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := &http.Client{Transport: New(ctx)}
		if _, err := ask(t, t.Context(), c, nil); !errors.Is(err, ErrStopped) {
			t.Errorf("%v", err)
		}
	})
}
