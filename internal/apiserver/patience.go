package apiserver

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"time"

	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"unipod.dev/unipod/internal/apiserver/inproc"
)

const (
	// patience is how long a client may take to accept a little of what is
	// written for it. An answer waiting to be read is memory: a list is as long
	// as its objects, a watch's event several times its own.
	patience = 30 * time.Second
	// littleAtOnce is how much that is: a client on a slow line that reads gets
	// all the time it needs.
	littleAtOnce = 32 << 10
)

// withPatience ends a response when its client doesn't read it. Streams of a
// container are left alone: a person may look at a page of a log for an hour,
// and they hold a small buffer only.
func withPatience(handler http.Handler, patience time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		info, ok := apirequest.RequestInfoFrom(req.Context())
		if inproc.Here(req.Context()) || ok && streams(info) {
			handler.ServeHTTP(w, req)
			return
		}
		p := &patientWriter{ResponseWriter: w, ctx: req.Context(), control: http.NewResponseController(w), patience: patience}
		if h, ok := w.(http.Hijacker); ok {
			handler.ServeHTTP(&patientHijacker{p, h}, req)
			return
		}
		handler.ServeHTTP(p, req)
	})
}

func streams(info *apirequest.RequestInfo) bool {
	switch info.Subresource {
	case "log", "exec", "attach", "portforward", "proxy":
		return true
	}
	return info.Verb == "proxy"
}

// patientWriter sets a deadline for everything that may wait for the client,
// and takes it away again: a watch may be silent for long.
type patientWriter struct {
	http.ResponseWriter
	ctx      context.Context // the request's
	control  *http.ResponseController
	patience time.Duration
}

func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *patientWriter) Write(b []byte) (n int, err error) {
	defer w.control.SetWriteDeadline(time.Time{})
	for {
		if err := w.control.SetWriteDeadline(time.Now().Add(w.patience)); err != nil {
			return n, err
		}
		m, err := w.ResponseWriter.Write(b[n:min(len(b), n+littleAtOnce)])
		if n += m; err != nil || n == len(b) {
			return n, err
		}
	}
}

func (w *patientWriter) Flush() {
	if w.control.SetWriteDeadline(time.Now().Add(w.patience)) != nil {
		return
	}
	defer w.control.SetWriteDeadline(time.Time{})
	_ = w.control.Flush() // the next write meets the same error
}

// CloseNotify is asked for by handlers written before contexts.
func (w *patientWriter) CloseNotify() <-chan bool {
	gone := make(chan bool, 1)
	context.AfterFunc(w.ctx, func() { gone <- true })
	return gone
}

// patientHijacker is that of a connection that can be taken over.
type patientHijacker struct {
	*patientWriter
	hijacker http.Hijacker
}

func (w *patientHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.hijacker.Hijack() }
