// Package inproc carries HTTP requests to a handler of the same process by a
// function call: no socket, no TLS, no copy of what is answered in whole.
//
// It promises a client what a connection would: answers that stream, deadlines
// and cancellation, an end of the handler when its reader is gone, and at most
// a quarter of a megabyte kept for a reader that is slow. What a connection has
// and this hasn't is a change of protocol. Everything is safe for concurrent
// use; a goroutine per request, which ends with its handler. Floor: 5.
package inproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"sync"
)

// streamAfter is how much of a response is kept before its reader has to take
// it: what is smaller costs no second goroutine's wake-up per write.
const streamAfter = 256 << 10

// ErrUpgrade is what is answered to a request for another protocol.
var ErrUpgrade = errors.New("the in-process client can't switch protocols: use the node's kubeconfig for exec, attach and port-forward")

// ErrStopped is what is answered when there will be no handler anymore.
var ErrStopped = errors.New("the API server was stopped")

// key marks a request of this process. No request from a socket has it:
// contexts don't travel.
type key struct{}

// Here says whether a request came from this process.
func Here(ctx context.Context) bool { return ctx.Value(key{}) != nil }

// A Transport carries requests to a handler. Until there is one they wait:
// upstream's parts ask for things while they are being made.
type Transport struct {
	handler  http.Handler
	open     chan struct{}   // closed when there is a handler
	stopping context.Context // ends when there never will be
}

// New makes a transport that is of use until ctx ends.
func New(ctx context.Context) *Transport {
	return &Transport{open: make(chan struct{}), stopping: ctx}
}

// Serve gives it its handler, once.
func (l *Transport) Serve(h http.Handler) {
	l.handler = h
	close(l.open)
}

// RoundTrip returns as soon as the handler has answered in whole, or flushed,
// or written much; what comes later is read from the body as it is written.
// Closing the body or ending the request's context ends the handler's context.
func (l *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case <-l.open:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	case <-l.stopping.Done():
		return nil, ErrStopped
	}
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), key{}, true))
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
	w := &writer{req: req, ctx: ctx, cancel: cancel, header: http.Header{}, answered: make(chan struct{})}
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
		if w.refused != nil {
			cancel()
			return nil, w.refused
		}
		return w.response(), nil
	case <-req.Context().Done():
		cancel()
		return nil, context.Cause(req.Context())
	}
}

// writer is the handler's end of a response and its body the client's.
// Its buffer is bounded by streamAfter plus one write.
type writer struct {
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
	failure  error       // what the body ends with
	answered chan struct{}
	refused  error // why there is no answer; set before answered is closed
}

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(code)
}

func (w *writer) writeHeaderLocked(code int) {
	if w.status != 0 || code < 200 && code != http.StatusSwitchingProtocols { // informational answers have nobody to inform
		return
	}
	w.status, w.sent = code, w.header.Clone()
}

func (w *writer) Write(p []byte) (int, error) {
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
func (w *writer) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(http.StatusOK)
	w.replyLocked()
}

// CloseNotify is asked for by handlers written before contexts.
func (w *writer) CloseNotify() <-chan bool {
	gone := make(chan bool, 1)
	context.AfterFunc(w.ctx, func() { gone <- true })
	return gone
}

func (w *writer) replyLocked() {
	if !w.replied {
		w.replied = true
		close(w.answered)
	}
}

func (w *writer) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.more.Broadcast()
}

// finish is deferred by the handler's goroutine. A panic that reaches it is
// the handler's way to abort a response (http.ErrAbortHandler) or a defect:
// either ends this response, not the process.
func (w *writer) finish() {
	p := recover()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeaderLocked(http.StatusOK)
	switch {
	case p != nil && w.replied:
		w.failure = io.ErrUnexpectedEOF
	case p == http.ErrAbortHandler: //nolint:errorlint // net/http compares it so
		w.refused = fmt.Errorf("%s %s: the handler gave up", w.req.Method, w.req.URL.Path)
	case p != nil:
		w.refused = fmt.Errorf("%s %s: the handler panicked: %v\n%s", w.req.Method, w.req.URL.Path, p, debug.Stack())
	case w.status == http.StatusSwitchingProtocols && !w.replied:
		w.refused = ErrUpgrade
	}
	w.done = true
	w.replyLocked()
	w.more.Broadcast()
}

func (w *writer) response() *http.Response {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &http.Response{
		Status:     fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)),
		StatusCode: w.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        w.sent,
		Body:          (*body)(w),
		ContentLength: -1,
		Request:       w.req,
	}
	if w.done {
		r.ContentLength = int64(w.buffer.Len())
	}
	return r
}

// body is the client's end.
type body writer

func (b *body) Read(p []byte) (int, error) {
	w := (*writer)(b)
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

func (b *body) Close() error {
	w := (*writer)(b)
	w.mu.Lock()
	w.closed = true
	w.buffer = bytes.Buffer{}
	w.more.Broadcast()
	w.mu.Unlock()
	w.cancel()
	return nil
}
