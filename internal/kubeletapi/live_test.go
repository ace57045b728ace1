package kubeletapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	v1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/utils/exec"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/test/isolate"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		isolate.Namespaces(syscall.CLONE_NEWNET)
	}
	os.Exit(m.Run())
}

func TestLive(t *testing.T) {
	r := newRig(t)
	web := demoPod("web", "echo started; echo oops >&2; echo hello >/www/index.html; httpd -p 80 -h /www; while read line; do echo got $line; done; sleep 1000")
	web.Spec.Containers[0].ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}}}
	r.start(web)
	t.Run("logs", r.testLogs)
	for _, kind := range []string{"spdy", "websocket"} {
		t.Run("exec "+kind, func(t *testing.T) { r.testExec(t, kind) })
	}
	t.Run("attach", r.testAttach)
	for _, kind := range []string{"spdy", "websocket"} {
		t.Run("port-forward "+kind, func(t *testing.T) { r.testPortForward(t, kind) })
	}
	// As with another runtime than ours.
	r.dialled.Store(true)
	for _, kind := range []string{"spdy", "websocket"} {
		t.Run("exec dialled "+kind, func(t *testing.T) { r.testExec(t, kind) })
		t.Run("port-forward dialled "+kind, func(t *testing.T) { r.testPortForward(t, kind) })
	}
	r.dialled.Store(false)
	t.Run("scrape", r.testScrape)
	t.Run("authorization", r.testAuthorization)
	t.Run("follow", r.testFollow)
	r.remove("web")
}

func (r *rig) testLogs(t *testing.T) {
	text, err := r.logs("web", &v1.PodLogOptions{})
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(text, "started\n") || !strings.Contains(text, "oops\n"); {
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("logs: %q (%v)", text, err)
		}
		time.Sleep(5 * time.Millisecond)
		text, err = r.logs("web", &v1.PodLogOptions{})
	}
	text, err = r.logs("web", &v1.PodLogOptions{TailLines: ptr.To[int64](1), Timestamps: true})
	if stamp, rest, _ := strings.Cut(text, " "); err != nil || rest != "oops\n" && rest != "started\n" {
		t.Errorf("logs with time stamps: %q (%v)", text, err)
	} else if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
		t.Error(err)
	}
	if text, err = r.logs("web", &v1.PodLogOptions{Previous: true}); err == nil || !strings.Contains(text, `previous terminated container \"main\" in pod \"web\" not found"`) {
		t.Errorf("logs --previous: %q (%v)", text, err)
	}
}

func (r *rig) testExec(t *testing.T, kind string) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	e := r.executor(kind, "web", "exec", &v1.PodExecOptions{Container: "main", Command: []string{"sh", "-c", "cat; echo err >&2; exit 7"}, Stdin: true, Stdout: true, Stderr: true})
	err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("through\n"), Stdout: &out, Stderr: &errs})
	var code utilexec.ExitError
	if !errors.As(err, &code) || code.ExitStatus() != 7 || out.String() != "through\n" || errs.String() != "err\n" {
		t.Errorf("exec: %v, %q, %q", err, out.String(), errs.String())
	}
	e = r.executor(kind, "web", "exec", &v1.PodExecOptions{Container: "none", Command: []string{"true"}, Stdout: true})
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("exec in a container that isn't there succeeded")
	}
}

func (r *rig) testAttach(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	read, write := io.Pipe()
	e := r.executor("websocket", "web", "attach", &v1.PodAttachOptions{Container: "main", Stdin: true, Stdout: true, Stderr: true})
	var out lines
	done := make(chan error, 1)
	go func() {
		done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: read, Stdout: &out, Stderr: io.Discard})
	}()
	for !out.has("got you") { // what is said before the attach stands is not heard
		if _, err := write.Write([]byte("you\n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if ctx.Err() != nil {
			t.Fatal("nothing comes back")
		}
	}
	cancel()
	write.Close()
	<-done
}

// lines is a writer that can be asked meanwhile.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), s)
}

func (r *rig) testPortForward(t *testing.T, kind string) {
	u, err := url.Parse(r.remote.Host + "/api/v1/namespaces/default/pods/web/portforward")
	must(t, err)
	transport, upgrader, err := spdy.RoundTripperFor(r.remote)
	must(t, err)
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	if kind == "websocket" {
		dialer, err = portforward.NewSPDYOverWebsocketDialer(u, r.remote)
		must(t, err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(dialer, []string{"0:80"}, stop, ready, io.Discard, os.Stderr)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	must(t, err)
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/index.html", ports[0].Local))
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != "hello\n" {
		t.Errorf("got %q (%v)", body, err)
	}
	close(stop)
	<-done
}

// get asks the kubelet itself.
func (r *rig) get(path string, cert *pki.Certificate, token string) (int, string) {
	config := &tls.Config{RootCAs: r.keys.CAPool(), ServerName: "localhost"}
	if cert != nil {
		config.GetClientCertificate = cert.GetClientCertificate
	}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, "https://"+r.kubelet+path, nil)
	must(r.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := transport.RoundTrip(req)
	must(r.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(r.t, err)
	return resp.StatusCode, string(body)
}

func (r *rig) testScrape(t *testing.T) {
	for path, want := range map[string]string{
		"/healthz":          "ok",
		"/pods":             `"name":"web"`,
		"/runningpods/":     `"name":"web"`,
		"/stats/summary":    `"workingSetBytes"`,
		"/metrics":          "go_goroutines",
		"/metrics/cadvisor": `container_memory_working_set_bytes{`,
		"/metrics/probes":   `prober_probe_total{container="main",namespace="default",pod="web"`,
		"/metrics/resource": `pod_memory_working_set_bytes{namespace="default",pod="web"} `,
	} {
		if code, body := r.get(path, r.keys.Admin(), ""); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %q: %.600s", path, code, want, body)
		}
	}
	if code, _ := r.get("/containerLogs/default/none/main", r.keys.Admin(), ""); code != http.StatusNotFound {
		t.Errorf("logs of no pod: %d", code)
	}
}

func (r *rig) testAuthorization(t *testing.T) {
	for path, who := range map[string]*pki.Certificate{"/healthz": nil, "/pods": nil, "/exec/default/web/main?command=id&output=1": nil} {
		if code, _ := r.get(path, who, ""); code != http.StatusUnauthorized {
			t.Errorf("%s by nobody: %d", path, code)
		}
	}
	ctx := t.Context()
	_, err := r.api.CoreV1().ServiceAccounts("default").Create(ctx, &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "scraper"}}, metav1.CreateOptions{})
	must(t, err)
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "scraper"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/metrics"}, Verbs: []string{"get"}}}}
	_, err = r.api.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	must(t, err)
	_, err = r.api.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "scraper"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "scraper"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "scraper"}},
	}, metav1.CreateOptions{})
	must(t, err)
	token, err := r.api.CoreV1().ServiceAccounts("default").CreateToken(ctx, "scraper", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(t, err)
	// The API's own authorizer learns of the role a little later, and the
	// kubelet remembers a refusal: it is asked once the API allows it.
	for {
		review, err := r.api.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:default:scraper", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "nodes", Subresource: "metrics", Name: r.name},
		}}, metav1.CreateOptions{})
		must(t, err)
		if review.Status.Allowed {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for path, want := range map[string]int{
		"/metrics/resource": http.StatusOK, "/metrics": http.StatusOK, "/stats/summary": http.StatusForbidden,
		"/exec/default/web/main?command=id&output=1": http.StatusForbidden, "/metricsx": http.StatusForbidden,
	} {
		if code, body := r.get(path, nil, token.Status.Token); code != want {
			t.Errorf("%s: %d %s, want %d", path, code, body, want)
		}
	}
	if code, _ := r.get("/metrics", nil, token.Status.Token+"x"); code != http.StatusUnauthorized {
		t.Errorf("a forged token: %d", code)
	}
}

// A follower of a log ends with the container.
func (r *rig) testFollow(t *testing.T) {
	pod := demoPod("short", "echo one; sleep 0.2; echo two")
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	r.start(pod)
	text, err := r.logs("short", &v1.PodLogOptions{Follow: true})
	if err != nil || text != "one\ntwo\n" {
		t.Errorf("logs -f: %q (%v)", text, err)
	}
	r.remove("short")
}

// BenchmarkStart measures from kubectl's create to Running and Ready as a watch
// sees it, scheduler included. The goal is 30 ms.
func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	r.start(demoPod("warm", "sleep 1000"))
	var took []time.Duration
	i := 0
	for b.Loop() {
		pod := demoPod(fmt.Sprintf("bench-%d", i), "sleep 1000")
		i++
		begin := time.Now()
		r.start(pod)
		took = append(took, time.Since(begin))
		b.StopTimer()
		r.remove(pod.Name)
		b.StartTimer()
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*9/10].Microseconds())/1000, "p90-ms")
	r.remove("warm")
}
