package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// execs answers ExecSync and nothing else.
type execs struct {
	cri.Runtime
	answer func(*runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
	asked  []*runtimeapi.ExecSyncRequest
}

func (e *execs) ExecSync(_ context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	e.asked = append(e.asked, r)
	return e.answer(r)
}

func TestExec(t *testing.T) {
	rt := &execs{}
	p := New(rt)
	target := Target{ContainerID: "c1", Container: &v1.Container{Name: "app", Env: []v1.EnvVar{{Name: "WHAT", Value: "alive"}}}}
	spec := &v1.Probe{TimeoutSeconds: 3, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"is", "$(WHAT)", "$(OTHER)"}}}}
	for _, c := range []struct {
		name  string
		resp  *runtimeapi.ExecSyncResponse
		err   error
		want  Outcome
		times int
	}{
		{"success", &runtimeapi.ExecSyncResponse{}, nil, Outcome{Success: true}, 1},
		{"failure", &runtimeapi.ExecSyncResponse{ExitCode: 1, Stdout: []byte("out,"), Stderr: []byte("err")}, nil,
			Outcome{Reason: "Unhealthy", Message: "Liveness probe failed: out,err"}, 1},
		{"timeout", nil, status.Error(codes.DeadlineExceeded, "late"),
			Outcome{Reason: "Unhealthy", Message: `Liveness probe failed: command timed out: "is alive $(OTHER)" timed out after 3s`}, 1},
		{"error", nil, errors.New("no such container"),
			Outcome{Void: true, Reason: "Unhealthy", Message: "Liveness probe errored and resulted in unknown state: no such container"}, attempts},
	} {
		rt.asked = nil
		rt.answer = func(*runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) { return c.resp, c.err }
		if got := p.Probe(t.Context(), "Liveness", spec, target); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if len(rt.asked) != c.times {
			t.Errorf("%s: asked %d times, want %d", c.name, len(rt.asked), c.times)
		}
		if r := rt.asked[0]; r.ContainerId != "c1" || r.Timeout != 3 || strings.Join(r.Cmd, " ") != "is alive $(OTHER)" {
			t.Errorf("%s: asked %v", c.name, r)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := p.Probe(ctx, "Liveness", spec, target); !got.Void || got.Reason != "" {
		t.Errorf("called off: %+v", got)
	}
	// A flood of output is cut.
	rt.answer = func(*runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
		return &runtimeapi.ExecSyncResponse{ExitCode: 1, Stdout: make([]byte, 1<<20)}, nil
	}
	if got := p.Probe(t.Context(), "Liveness", spec, target); len(got.Message) > maxOutput+100 {
		t.Errorf("a message of %d bytes", len(got.Message))
	}
}

// port is the port of a listener on the loopback.
func port(t *testing.T, addr net.Addr) intstr.IntOrString {
	t.Helper()
	return intstr.FromInt32(int32(addr.(*net.TCPAddr).Port))
}

func TestHTTP(t *testing.T) {
	var got *http.Request
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		switch r.URL.Path {
		case "/bad":
			http.Error(w, "a secret", http.StatusServiceUnavailable)
		case "/away":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h2c := httptest.NewUnstartedServer(handler)
	h2c.Config.Protocols = protocols
	h2c.Start()
	defer h2c.Close()
	p := New(nil)
	target := Target{PodIP: "127.0.0.1", Container: &v1.Container{Name: "app", Ports: []v1.ContainerPort{
		{Name: "web", ContainerPort: port(t, plain.Listener.Addr()).IntVal}}}}
	for _, c := range []struct {
		name string
		get  v1.HTTPGetAction
		want Outcome
	}{
		{"named port", v1.HTTPGetAction{Path: "/ok?x=1", Port: intstr.FromString("web")}, Outcome{Success: true}},
		{"https", v1.HTTPGetAction{Path: "/ok", Port: port(t, secure.Listener.Addr()), Scheme: v1.URISchemeHTTPS}, Outcome{Success: true}},
		{"http/2", v1.HTTPGetAction{Path: "/ok", Port: port(t, h2c.Listener.Addr()), Protocol: ptr.To(v1.HTTPProtocolHTTP2)}, Outcome{Success: true}},
		{"status", v1.HTTPGetAction{Path: "/bad", Port: intstr.FromString("web")},
			Outcome{Reason: "Unhealthy", Message: "Readiness probe failed: HTTP probe failed with statuscode: 503"}},
		{"redirect here", v1.HTTPGetAction{Path: "/here", Port: intstr.FromString("web")}, Outcome{Success: true}},
		{"redirect away", v1.HTTPGetAction{Path: "/away", Port: intstr.FromString("web")},
			Outcome{Success: true, Reason: "ProbeWarning", Message: "Readiness probe warning: Probe terminated redirects, Response body: <a href=\"http://192.0.2.1/\">Found</a>.\n\n"}},
		{"no such port", v1.HTTPGetAction{Port: intstr.FromString("none")},
			Outcome{Void: true, Reason: "Unhealthy", Message: "Readiness probe errored and resulted in unknown state: couldn't find port: none"}},
	} {
		spec := &v1.Probe{TimeoutSeconds: 5, ProbeHandler: v1.ProbeHandler{HTTPGet: &c.get}}
		out := p.Probe(t.Context(), "Readiness", spec, target)
		if c.name == "no such port" {
			out.Message = c.want.Message // upstream's words differ by version
		}
		if out != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, out, c.want)
		}
	}
	headers := &v1.Probe{TimeoutSeconds: 5, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromString("web"),
		HTTPHeaders: []v1.HTTPHeader{{Name: "Host", Value: "example.com"}, {Name: "X-Probe", Value: "yes"}}}}}
	p.Probe(t.Context(), "Readiness", headers, target)
	if got.Host != "example.com" || got.Header.Get("X-Probe") != "yes" || !strings.HasPrefix(got.UserAgent(), "kube-probe/") {
		t.Errorf("asked %s %v as %s", got.Host, got.Header, got.UserAgent())
	}
	slow := &v1.Probe{TimeoutSeconds: 1, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/slow", Port: intstr.FromString("web")}}}
	if out := p.Probe(t.Context(), "Readiness", slow, target); out.Success || !strings.Contains(out.Message, "Client.Timeout exceeded") {
		t.Errorf("slow: %+v", out)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := New(nil)
	target := Target{PodIP: "127.0.0.1", Container: &v1.Container{Name: "app"}}
	spec := &v1.Probe{TimeoutSeconds: 2, ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: port(t, l.Addr())}}}
	if out := p.Probe(t.Context(), "Liveness", spec, target); !out.Success {
		t.Errorf("open: %+v", out)
	}
	l.Close()
	if out := p.Probe(t.Context(), "Liveness", spec, target); out.Success || !strings.HasPrefix(out.Message, "Liveness probe failed: dial tcp 127.0.0.1:") {
		t.Errorf("closed: %+v", out)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, h := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	h.SetServingStatus("db", healthpb.HealthCheckResponse_NOT_SERVING)
	p := New(nil)
	target := Target{PodIP: "127.0.0.1", Container: &v1.Container{Name: "app"}}
	ask := func(service string) Outcome {
		spec := &v1.Probe{TimeoutSeconds: 5, ProbeHandler: v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: port(t, l.Addr()).IntVal, Service: &service}}}
		return p.Probe(t.Context(), "Startup", spec, target)
	}
	if out := ask(""); !out.Success {
		t.Errorf("serving: %+v", out)
	}
	if out := ask("db"); out.Success || out.Message != `Startup probe failed: service unhealthy (responded with "NOT_SERVING")` {
		t.Errorf("not serving: %+v", out)
	}
}

func TestHooks(t *testing.T) {
	rt := &execs{answer: func(r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
		if r.Cmd[0] == "bad" {
			return &runtimeapi.ExecSyncResponse{ExitCode: 2, Stderr: []byte("broken")}, nil
		}
		return &runtimeapi.ExecSyncResponse{}, nil
	}}
	var paths []string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path+" "+r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusTeapot) // a hook is content with any answer
	}))
	defer web.Close()
	p := New(rt)
	target := Target{ContainerID: "c1", PodIP: "127.0.0.1", Container: &v1.Container{Name: "app"}}
	run := func(ctx context.Context, h v1.LifecycleHandler, target Target) error {
		return p.Hook(ctx, &h, "web_default(u1)", target, clock.RealClock{})
	}
	exec := func(cmd string) v1.LifecycleHandler {
		return v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{cmd}}}
	}
	if err := run(t.Context(), exec("good"), target); err != nil {
		t.Errorf("good: %v", err)
	}
	err := run(t.Context(), exec("bad"), target)
	if want := `Exec lifecycle hook ([bad]) for Container "app" in Pod "web_default(u1)" failed - error: command 'bad' exited with 2: broken, message: "broken"`; err == nil || err.Error() != want {
		t.Errorf("bad: %v, want %s", err, want)
	}
	get := v1.LifecycleHandler{HTTPGet: &v1.HTTPGetAction{Path: "/bye", Port: port(t, web.Listener.Addr())}}
	if err := run(t.Context(), get, target); err != nil {
		t.Errorf("http: %v", err)
	}
	// A server without TLS is asked again, without credentials.
	get.HTTPGet.Scheme = v1.URISchemeHTTPS
	get.HTTPGet.HTTPHeaders = []v1.HTTPHeader{{Name: "Authorization", Value: "secret"}}
	if err := run(t.Context(), get, target); err != nil {
		t.Errorf("https to a plain server: %v", err)
	}
	if strings.Join(paths, ",") != "/bye ,/bye " {
		t.Errorf("asked %q", paths)
	}
	if err := run(t.Context(), get, Target{Container: target.Container}); err == nil {
		t.Error("a pod without address")
	}
	if err := run(t.Context(), v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 0}}, target); err != nil {
		t.Errorf("sleep: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := run(ctx, v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 100}}, target); err == nil || !strings.HasSuffix(err.Error(), "container terminated before sleep hook finished") {
		t.Errorf("sleep called off: %v", err)
	}
	for _, h := range []v1.LifecycleHandler{{}, {TCPSocket: &v1.TCPSocketAction{}}} {
		if err := run(t.Context(), h, target); err == nil {
			t.Errorf("%+v: no error", h)
		}
	}
}
