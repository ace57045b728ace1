package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	certutil "k8s.io/client-go/util/cert"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// protocol makes the client of a streaming URL, as kubectl's.
type protocol struct {
	name string
	make func(*rest.Config, *url.URL) (remotecommand.Executor, error)
}

var (
	overSPDY = protocol{"SPDY", func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(c, "POST", u)
	}}
	// v5 has a half-close; v4 is what the streaming library itself speaks.
	overWebSocket5 = protocol{"WebSocket v5", func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(c, "GET", u.String())
	}}
	overWebSocket = protocol{"WebSocket", func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(c, "GET", u.String(), "v4.channel.k8s.io")
	}}
)

func (p protocol) stream(ctx context.Context, t *testing.T, to string, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.make(&rest.Config{Host: u.Scheme + "://" + u.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: caFile}}, u)
	if err != nil {
		t.Fatal(err)
	}
	return e.StreamWithContext(ctx, o)
}

// attach types text to a container and leaves.
func (n *node) attach(t *testing.T, p protocol, id, text string) {
	t.Helper()
	resp, err := n.Attach(context.Background(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stream(context.Background(), t, resp.Url, remotecommand.StreamOptions{Stdin: strings.NewReader(text)}); err != nil {
		t.Errorf("attach over %s: %v", p.name, err)
	}
}

// sizes hands out one window size.
type sizes chan *remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize { return <-s }

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) wait(t *testing.T, text string) {
	t.Helper()
	for range 1000 {
		if strings.Contains(b.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%q doesn't come; there is %q", text, b.String())
}

func TestExecStream(t *testing.T) {
	n := newNode(t)
	_, id := n.mustStart("sleep 1000")
	for _, p := range []protocol{overSPDY, overWebSocket5, overWebSocket} {
		t.Run(p.name, func(t *testing.T) {
			exec := func(ctx context.Context, req *runtimeapi.ExecRequest, o remotecommand.StreamOptions) error {
				req.ContainerId = id
				resp, err := n.Exec(ctx, req)
				if err != nil {
					t.Fatal(err)
				}
				return p.stream(ctx, t, resp.Url, o)
			}
			// Both streams, input up to its end, the exit code.
			read := "cat"
			if p.name == "WebSocket" {
				read = "head -c 250000" // its v4 can't tell the end of input
			}
			var out, errOut buffer
			err := exec(t.Context(), &runtimeapi.ExecRequest{Cmd: []string{"sh", "-c", read + "; echo oops >&2; exit 9"}, Stdin: true, Stdout: true, Stderr: true},
				remotecommand.StreamOptions{Stdin: strings.NewReader(strings.Repeat("line\n", 50000)), Stdout: &out, Stderr: &errOut})
			var exit interface{ ExitStatus() int }
			if !errors.As(err, &exit) || exit.ExitStatus() != 9 || len(out.String()) != 250000 || errOut.String() != "oops\n" {
				t.Errorf("%v, %d bytes of output, %q", err, len(out.String()), errOut.String())
			}
			// A terminal and its size.
			in, keyboard := io.Pipe()
			window := make(sizes, 1)
			window <- &remotecommand.TerminalSize{Width: 91, Height: 37}
			var screen buffer
			done := make(chan error, 1)
			go func() {
				err := exec(t.Context(), &runtimeapi.ExecRequest{Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true},
					remotecommand.StreamOptions{Stdin: in, Stdout: &screen, Tty: true, TerminalSizeQueue: window})
				done <- err
				in.Close()
			}()
			fmt.Fprint(keyboard, "until stty size | grep '37 91'; do sleep 0.05; done; tty\n")
			select {
			case err := <-done:
				t.Fatalf("the shell ended: %v, %q", err, screen.String())
			case <-time.After(300 * time.Millisecond):
			}
			screen.wait(t, "37 91\r\n")
			fmt.Fprint(keyboard, "exit 3\n")
			if err := <-done; !errors.As(err, &exit) || exit.ExitStatus() != 3 {
				t.Errorf("a shell: %v", err)
			}
			close(window)
			keyboard.Close()
			// A client that goes takes its command along.
			ctx, cancel := context.WithCancel(t.Context())
			var ticks buffer
			go func() {
				ticks.wait(t, "y\ny\n")
				cancel()
			}()
			if err := exec(ctx, &runtimeapi.ExecRequest{Cmd: []string{"yes"}, Stdout: true}, remotecommand.StreamOptions{Stdout: &limited{w: &ticks, n: 1 << 20}}); err == nil {
				t.Error("yes ended by itself")
			}
			n.alone(t, id)
			// A command that isn't there.
			if err := exec(t.Context(), &runtimeapi.ExecRequest{Cmd: []string{"no-such-command"}, Stdout: true}, remotecommand.StreamOptions{Stdout: &out}); err == nil || !strings.Contains(err.Error(), "no-such-command") {
				t.Errorf("no-such-command: %v", err)
			}
		})
	}
	// A URL is good once.
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := overSPDY.stream(t.Context(), t, resp.Url, remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
		t.Error(err)
	}
	if err := overSPDY.stream(t.Context(), t, resp.Url, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("a URL was good twice")
	}
}

// limited keeps the first n bytes and throws the rest away.
type limited struct {
	w io.Writer
	n int
}

func (l *limited) Write(p []byte) (int, error) {
	if keep := min(l.n, len(p)); keep > 0 {
		l.w.Write(p[:keep])
		l.n -= keep
	}
	return len(p), nil
}

// alone waits until a container has no process but its own two.
func (n *node) alone(t *testing.T, id string) {
	t.Helper()
	for range 500 {
		resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "ps | grep -c '[y]es'"}, Timeout: 10})
		if err != nil {
			t.Fatal(err)
		}
		if string(resp.Stdout) == "0\n" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the command outlived its client")
}

func TestAttachStream(t *testing.T) {
	n := newNode(t)
	for _, p := range []protocol{overSPDY, overWebSocket5, overWebSocket} {
		t.Run(p.name, func(t *testing.T) {
			_, id := n.mustStart("while read l; do echo got $l; echo err $l >&2; [ $l = end ] && exit 2; done", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp, err := n.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			in, keyboard := io.Pipe()
			defer keyboard.Close()
			var out, errOut buffer
			done := make(chan error, 1)
			go func() {
				done <- p.stream(ctx, t, resp.Url, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errOut})
			}()
			fmt.Fprint(keyboard, "one\n")
			out.wait(t, "got one\n")
			errOut.wait(t, "err one\n")
			n.attach(t, overSPDY, id, "two\n")
			out.wait(t, "got two\n")
			fmt.Fprint(keyboard, "end\n")
			if err := <-done; err != nil {
				t.Errorf("the attached client: %v", err)
			}
			if st := n.wait(id); st.ExitCode != 2 {
				t.Errorf("exit %d", st.ExitCode)
			}
		})
	}
}

func TestPortForward(t *testing.T) {
	n := newNode(t)
	p, id := n.mustStart("mkdir -p /tmp/www; echo hello from the pod >/tmp/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www")
	for range 500 { // until it listens
		if resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"wget", "-qO-", "http://127.0.0.1:8080/"}}); err == nil && resp.ExitCode == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	resp, err := n.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{8080, 8081}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Scheme + "://" + u.Host})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u),
		[]string{"127.0.0.1"}, []string{":8080", ":8081"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	var gets sync.WaitGroup
	for range 16 {
		gets.Go(func() {
			r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			if b, _ := io.ReadAll(r.Body); string(b) != "hello from the pod\n" {
				t.Errorf("got %q", b)
			}
		})
	}
	gets.Wait()
	if _, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[1].Local)); err == nil {
		t.Error("a port that nobody listens on answered")
	}
	close(stop)
	<-done
}

// pausePID reads the parent's PID out of a sandbox's verbose status.
func pausePID(t *testing.T, info string) int {
	t.Helper()
	var rec struct{ PausePID int }
	if err := json.Unmarshal([]byte(info), &rec); err != nil || rec.PausePID == 0 {
		t.Fatalf("no PID in %s: %v", info, err)
	}
	return rec.PausePID
}

// caFile is the certificate that streams are checked with, "" for none.
var caFile string

func TestStreamTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key, err := certutil.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for file, b := range map[string][]byte{certFile: cert, keyFile: key} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	caFile = certFile
	t.Cleanup(func() { caFile = "" })
	n := newNode(t, "--stream-tls-cert", certFile, "--stream-tls-key", keyFile)
	_, id := n.mustStart("sleep 1000")
	for _, p := range []protocol{overSPDY, overWebSocket5, overWebSocket} {
		resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"echo", "secret"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		var out buffer
		if err := p.stream(t.Context(), t, resp.Url, remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "secret\n" || !strings.HasPrefix(resp.Url, "https://") {
			t.Errorf("%s at %s: %v, %q", p.name, resp.Url, err, out.String())
		}
	}
}
