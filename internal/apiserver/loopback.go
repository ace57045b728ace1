package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"
)

// streamAfter is how much of a response is kept before its reader has to take
// it: what is smaller costs no second goroutine's wake-up per write.
const streamAfter = 256 << 10

var errUpgrade = errors.New("the in-process client can't switch protocols: use the node's kubeconfig for exec, attach and port-forward")

var errStopped = errors.New("the API server was stopped")

// loopbackKey marks a request of this process. No request from a socket has
// it: contexts don't travel.
type loopbackKey struct{}

// loopbackUser is who this process is to its own API.
var loopbackUser = &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.AllAuthenticated, user.SystemPrivilegedGroup}}

func isLoopback(ctx context.Context) bool { return ctx.Value(loopbackKey{}) != nil }

func authenticateLoopback(req *http.Request) (*authenticator.Response, bool, error) {
	if !isLoopback(req.Context()) {
		return nil, false, nil
	}
	return &authenticator.Response{User: loopbackUser}, true, nil
}

// loopbackConfig is a client's configuration for the handler in this process.
func loopbackConfig(t http.RoundTripper) *rest.Config {
	return &rest.Config{
		Host:      "http://unipod.internal",
		Transport: t,
		ContentConfig: rest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
		UserAgent:          "unipod",
		QPS:                -1,
		DisableCompression: true,
	}
}

// loopback carries requests to a handler by a function call. Until there is a
// handler they wait: upstream's parts ask for things while they are being made.
type loopback struct {
	handler  http.Handler
	open     chan struct{}   // closed when there is a handler
	stopping context.Context // ends when there never will be
}

func (l *loopback) serve(h http.Handler) {
	l.handler = h
	close(l.open)
}

// RoundTrip returns as soon as the handler has answered in whole, or flushed,
// or written much; what comes later is read from the body as it is written.
// Closing the body or ending the request's context ends the handler's context.
func (l *loopback) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case <-l.open:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	case <-l.stopping.Done():
		return nil, errStopped
	}
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), loopbackKey{}, true))
	in := req.Clone(ctx)
	in.RequestURI = req.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/1.1", 1, 1
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := &loopbackWriter{req: req, ctx: ctx, cancel: cancel, header: http.Header{}, answered: make(chan struct{})}
	w.more.L = &w.mu
	stop := context.AfterFunc(ctx, w.wake)
	go func() {
		defer stop()
		defer cancel()
		defer in.Body.Close()
		defer w.finish()
		l.handler.ServeHTTP(w, in)
	}()
	select {
	case <-w.answered:
		if w.failure != nil {
			cancel()
			return nil, w.failure
		}
		return w.response(), nil
	case <-req.Context().Done():
		cancel()
		return nil, context.Cause(req.Context())
	}
}

// loopbackWriter is the handler's end of a response and its body the client's.
// Its buffer is bounded by streamAfter plus one write.
type loopbackWriter struct {
	req    *http.Request
	ctx    context.Context
	cancel context.CancelFunc
	header http.Header // the handler's

	mu       sync.Mutex
	more     sync.Cond // buffer, done or closed changed
	buffer   bytes.Buffer
	status   int
	sent     http.Header // a copy at the time of WriteHeader
	replied  bool        // answered is closed
	done     bool        // the handler has returned
	closed   bool        // the client has closed the body
	failure  error       // set before answered is closed
	answered chan struct{}
}

func (w *loopbackWriter) Header() http.Header { return w.header }

func (w *loopbackWriter) WriteHeader(code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(code)
}

func (w *loopbackWriter) writeHeaderLocked(code int) {
	if w.status != 0 || code < 200 { // informational answers have nobody to inform
		return
	}
	w.status, w.sent = code, w.header.Clone()
}

func (w *loopbackWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(http.StatusOK)
	for w.buffer.Len() >= streamAfter && !w.closed && w.ctx.Err() == nil {
		w.replyLocked()
		w.more.Wait()
	}
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.buffer.Write(p)
	w.more.Broadcast()
	return n, err
}

// Flush makes what is written so far readable: a watch's header, then each of
// its events.
func (w *loopbackWriter) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(http.StatusOK)
	w.replyLocked()
}

// CloseNotify is asked for by handlers written before contexts.
func (w *loopbackWriter) CloseNotify() <-chan bool {
	gone := make(chan bool, 1)
	context.AfterFunc(w.ctx, func() { gone <- true })
	return gone
}

func (w *loopbackWriter) replyLocked() {
	if !w.replied {
		w.replied = true
		close(w.answered)
	}
}

func (w *loopbackWriter) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.more.Broadcast()
}

// finish is deferred by the handler's goroutine. A panic that reaches it is
// the handler's way to abort a response (http.ErrAbortHandler) or a defect:
// either ends this response, not the process.
func (w *loopbackWriter) finish() {
	p := recover()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case p != nil && !w.replied:
		w.failure = fmt.Errorf("%s %s: the handler gave up: %v", w.req.Method, w.req.URL.Path, p)
		if p != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
			w.failure = fmt.Errorf("%w\n%s", w.failure, debug.Stack())
		}
	case p != nil:
		w.failure = io.ErrUnexpectedEOF
	}
	w.writeHeaderLocked(http.StatusOK)
	if w.status == http.StatusSwitchingProtocols && w.failure == nil {
		w.failure = errUpgrade
	}
	w.done = true
	w.replyLocked()
	w.more.Broadcast()
}

func (w *loopbackWriter) response() *http.Response {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &http.Response{
		Status:     fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)),
		StatusCode: w.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        w.sent,
		Body:          (*loopbackBody)(w),
		ContentLength: -1,
		Request:       w.req,
	}
	if w.done {
		r.ContentLength = int64(w.buffer.Len())
	}
	return r
}

// loopbackBody is the client's end.
type loopbackBody loopbackWriter

func (b *loopbackBody) Read(p []byte) (int, error) {
	w := (*loopbackWriter)(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.closed:
			return 0, http.ErrBodyReadAfterClose
		case w.buffer.Len() > 0:
			n, err := w.buffer.Read(p)
			w.more.Broadcast()
			return n, err
		case w.failure != nil:
			return 0, w.failure
		case w.done:
			return 0, io.EOF
		case w.ctx.Err() != nil:
			return 0, context.Cause(w.ctx)
		}
		w.more.Wait()
	}
}

func (b *loopbackBody) Close() error {
	w := (*loopbackWriter)(b)
	w.mu.Lock()
	w.closed = true
	w.buffer = bytes.Buffer{}
	w.more.Broadcast()
	w.mu.Unlock()
	w.cancel()
	return nil
}
