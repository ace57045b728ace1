package runtime

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/apiserver/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"unipod.dev/unipod/internal/linger"
)

// streamServer serves exec, attach and port-forward: the CRI call hands out a
// URL with a one-time token, the client (kubelet, crictl) connects to it.
type streamServer struct {
	streaming.Server
	http *http.Server
	done chan struct{}
}

func newStreamServer(r *Runtime, rc Config) (*streamServer, error) {
	addr := rc.StreamAddr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for exec, attach and port-forward: %w", err)
	}
	l = linger.Listen(l) // the exit code comes last, and kubelet's proxy is in between
	cfg := streaming.DefaultConfig
	cfg.Addr = l.Addr().String()
	cfg.BaseURL = &url.URL{Scheme: "http", Host: cfg.Addr}
	if rc.StreamCert != "" || rc.StreamKey != "" {
		pair, err := tls.LoadX509KeyPair(rc.StreamCert, rc.StreamKey)
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("certificate of the streaming server: %w", err)
		}
		// HTTP/1.1 only: an upgrade is not of HTTP/2.
		cfg.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
		cfg.BaseURL.Scheme = "https"
		l = tls.NewListener(l, cfg.TLSConfig)
	}
	srv, err := streaming.NewServer(cfg, streamRuntime{r})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s := &streamServer{Server: srv, done: make(chan struct{})}
	s.http = &http.Server{Handler: withWebSockets(srv, cfg.BaseURL), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			r.log.Error("the streaming server ended", "error", err)
		}
	}()
	return s, nil
}

// Streams serves the addresses that Exec, Attach and PortForward hand out, for
// callers in this process: what is sent needn't go by a socket twice.
func (r *Runtime) Streams() http.Handler { return r.stream.http.Handler }

func (s *streamServer) close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// running finds a container that runs.
func (r *Runtime) running(id string) (*container, error) {
	c, err := r.container(id)
	if err != nil {
		return nil, err
	}
	if st := c.state(); st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %q is in %s state: %w", c.id, st, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// Exec implements cri.Runtime.
func (r *Runtime) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (_ *runtimeapi.ExecResponse, err error) {
	defer toGRPC(&err)
	if _, err := r.running(req.GetContainerId()); err != nil {
		return nil, err
	}
	resp, err := r.stream.GetExec(req)
	if err != nil {
		return nil, err
	}
	resp.Url, err = streamOptions(resp.Url, proxy.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Tty: req.Tty})
	return resp, err
}

// Attach implements cri.Runtime.
func (r *Runtime) Attach(ctx context.Context, req *runtimeapi.AttachRequest) (_ *runtimeapi.AttachResponse, err error) {
	defer toGRPC(&err)
	if _, err := r.running(req.GetContainerId()); err != nil {
		return nil, err
	}
	resp, err := r.stream.GetAttach(req)
	if err != nil {
		return nil, err
	}
	resp.Url, err = streamOptions(resp.Url, proxy.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Tty: req.Tty})
	return resp, err
}

// PortForward implements cri.Runtime.
func (r *Runtime) PortForward(ctx context.Context, req *runtimeapi.PortForwardRequest) (_ *runtimeapi.PortForwardResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if _, err := s.live(); err != nil {
		return nil, err
	}
	return r.stream.GetPortForward(req)
}

// streamRuntime does what the streaming server is asked for.
type streamRuntime struct{ r *Runtime }

func dims(s remotecommand.TerminalSize) (w, h uint16) { return s.Width, s.Height }

// Exec implements streaming.Runtime. A non-zero exit is an utilexec.ExitError.
func (sr streamRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := sr.r.container(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := sr.r.exec(ctx, c, cmd, tty, in != nil)
	if err != nil {
		return fmt.Errorf("failed to exec in container: %w", err)
	}
	defer p.close()
	if tty {
		go resizeTTY(ctx, p.io.stdout, resize, dims)
	}
	if in != nil {
		go func() {
			// Ends with the client's half-close, or with the connection when
			// Exec returns.
			io.Copy(p.io.stdin, in)
			p.io.closeStdin()
		}()
	}
	var pumps sync.WaitGroup
	gone := make(chan struct{}, 2) // a stream that the client no longer takes
	copyTo := func(f *os.File, w io.Writer) {
		if f == nil {
			return
		}
		pumps.Go(func() {
			err := readChunks(f, func(b []byte) error {
				if w == nil {
					return nil
				}
				_, err := w.Write(b)
				return err
			})
			if err != nil && !errors.Is(err, os.ErrClosed) {
				gone <- struct{}{}
			}
		})
	}
	copyTo(p.io.stdout, out)
	copyTo(p.io.stderr, errOut)
	var code int32
	waited := make(chan error, 1)
	go func() {
		var err error
		code, err = p.wait(ctx)
		waited <- err
	}()
	select {
	case err = <-waited:
	case <-gone:
		err = context.Canceled
	}
	if err != nil {
		killTree(p) // the client went away
		p.close()
		pumps.Wait()
		return err
	}
	drained := make(chan struct{})
	go func() { pumps.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(drainTime):
	}
	p.close()
	<-drained
	if code != 0 {
		return &utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: int(code)}
	}
	return nil
}

// Attach implements streaming.Runtime.
func (sr streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := sr.r.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	cio := c.io
	c.mu.Unlock()
	if cio == nil {
		return fmt.Errorf("container %q is not running", id)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := cio.attach(out != nil, errOut != nil)
	defer cio.detach(a)
	if cio.master {
		go resizeTTY(ctx, cio.stdout, resize, dims)
	}
	var copies sync.WaitGroup
	if a.stdout != nil {
		copies.Go(func() { stopOn(copyOut(a.stdout, out), cancel) })
	}
	if a.stderr != nil {
		copies.Go(func() { stopOn(copyOut(a.stderr, errOut), cancel) })
	}
	if in != nil && cio.stdin != nil {
		go func() {
			_, err := io.Copy(cio.stdin, in)
			if c.config.StdinOnce && !c.config.Tty {
				c.endInput(cio)
			}
			// An attach for input only ends with its input.
			if err != nil || out == nil && errOut == nil {
				cancel()
			}
		}()
	}
	select {
	case <-a.gone:
		copies.Wait()
		return a.err
	case <-ctx.Done():
		return nil
	}
}

// endInput gives the container the end of its input: both the node and pause
// hold the pipe's other end.
func (c *container) endInput(cio *containerIO) {
	conn, err := c.sandbox.live()
	if err != nil {
		return // it has ended
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := conn.DropKept(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
		c.sandbox.r.log.Warn("closing a container's input", "container", c.id, "error", err)
	}
	cio.closeStdin()
}

func stopOn(err error, stop func()) {
	if err != nil {
		stop()
	}
}

// PortForward implements streaming.Runtime: it connects to the port on the
// pod's own localhost.
func (sr streamRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	s, err := sr.r.sandbox(id)
	if err != nil {
		return err
	}
	conn, err := s.dial(ctx, port)
	if err != nil {
		return fmt.Errorf("failed to connect to localhost:%d inside pod sandbox %q: %w", port, s.id, err)
	}
	defer conn.Close()
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, stream)
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.CloseWrite() // the client's half-close travels on
		}
		if err != nil {
			done <- err
		}
	}()
	go func() {
		_, err := io.Copy(stream, conn)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dial connects from within the pod's network namespace. Only the thread
// that makes the socket enters it: the socket stays there.
func (s *sandbox) dial(ctx context.Context, port int32) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, invalid("port %d is out of range", port)
	}
	if s.hostNetwork() {
		return dialLocalhost(ctx, port)
	}
	ns, err := s.nsFile("net")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return dialInside(ctx, ns, port)
}

// dialInside dials with the thread in the namespace, and brings it home: one
// that can't go home stays locked and ends with its goroutine. The process's
// first thread can't end, and /proc/PID/ns tells of it; in a pod's namespace
// it would be taken for the host.
func dialInside(ctx context.Context, ns *os.File, port int32) (net.Conn, error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("the host's network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("entering the pod's network namespace: %w", err)
	}
	conn, err := dialLocalhost(ctx, port)
	if herr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); herr != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("leaving the pod's network namespace: %w", herr)
	}
	runtime.UnlockOSThread()
	return conn, err
}

// dialLocalhost tries IPv4, then IPv6, one after the other on this thread:
// the dialer's own race would use other threads.
func dialLocalhost(ctx context.Context, port int32) (net.Conn, error) {
	d := net.Dialer{FallbackDelay: -1}
	conn, err := d.DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		return conn, nil
	}
	conn, err6 := d.DialContext(ctx, "tcp6", fmt.Sprintf("[::1]:%d", port))
	if err6 == nil {
		return conn, nil
	}
	return nil, err
}
