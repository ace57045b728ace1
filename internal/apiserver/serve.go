package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// Slow clients: how long one may take for a request's header, and how long
	// an idle connection is kept. Upstream's.
	headerTimeout = 32 * time.Second
	idleTimeout   = 90 * time.Second
	maxHeader     = 1 << 20
	// drain is how long requests may go on after the server was told to end.
	drain = 5 * time.Second

	maxStreams   = 100
	streamBuffer = 256 << 10
)

// Serve answers on a listener, over TLS with the certificate that is valid at
// the time of each handshake, until ctx ends. Requests under way have a moment
// to end; watches end at once. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	short := &underway{idle: make(chan struct{})}
	srv := &http.Server{
		Handler:           s.counting(short),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: certificate,
			ClientAuth:     tls.RequestClientCert, // verified by authentication, whose authority may change
			NextProtos:     []string{"h2", "http/1.1"},
		},
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamBuffer,
			MaxReceiveBufferPerConnection: streamBuffer * maxStreams,
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(l, "", "") }()
	select {
	case err := <-ended:
		return fmt.Errorf("the API's listener %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	// Shutdown waits for every request, and watches have no end of their own.
	timeout, done := context.WithTimeout(base, drain)
	defer done()
	short.drain()
	go func() {
		select {
		case <-short.idle:
			cancel()
		case <-timeout.Done():
		}
	}()
	if err := srv.Shutdown(timeout); err != nil {
		srv.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the API's listener %s: %w", l.Addr(), err)
	}
	return nil
}

// counting counts the requests of one listener that end by themselves.
// Upstream's own count is of the whole server, and refuses requests after it
// was waited for: this process's go on when a listener ends.
func (s *Server) counting(short *underway) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		info, err := s.config.RequestInfoResolver.NewRequestInfo(req)
		if err != nil || !s.config.LongRunningFunc(req, info) {
			defer short.enter()()
		}
		s.handler.ServeHTTP(w, req)
	})
}

// underway counts, and tells when nothing is left after it was told to.
type underway struct {
	mu       sync.Mutex
	n        int
	draining bool
	idle     chan struct{}
}

func (u *underway) enter() (leave func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.n--
		u.tell()
	}
}

func (u *underway) drain() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.draining = true
	u.tell()
}

func (u *underway) tell() {
	if !u.draining || u.n > 0 {
		return
	}
	select {
	case <-u.idle:
	default:
		close(u.idle)
	}
}
