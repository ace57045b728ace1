package apiserver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/klogs"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
)

// world is the one server of this package's tests: upstream's scheme and
// metrics are the process's.
type world struct {
	*Server
	dir     string
	keys    *pki.Authority
	address string
	kubelet *fakeKubelet
	audit   string
}

var theWorld struct {
	sync.Once
	*world
	close func()
	err   error
}

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: RequestResponse
  resources: [{group: "", resources: [configmaps]}]
  namespaces: [audited]
- level: None
`

func TestMain(m *testing.M) {
	klogs.Install(slog.New(slog.DiscardHandler))
	code := m.Run()
	if theWorld.close != nil {
		theWorld.close()
		var known []goleak.Option
		for _, f := range []string{
			"k8s.io/apimachinery/pkg/util/wait.Forever",                                 // the token cache sweeps as long as the process lives
			"k8s.io/apiextensions-apiserver/pkg/apiserver.(*crdHandler).tearDown",       // a definition that was deleted waits for its requests
			"k8s.io/apiextensions-apiserver/pkg/apiserver.(*crdHandler).tearDown.func1", // and this for it
			"gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun",                      // the audit log's rotation has no end
		} {
			known = append(known, goleak.IgnoreAnyFunction(f))
		}
		if err := goleak.Find(known...); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// start gives a test the server, ready.
func start(t *testing.T) *world {
	t.Helper()
	theWorld.Do(func() { theWorld.world, theWorld.close, theWorld.err = newWorld() })
	if theWorld.err != nil {
		t.Fatal(theWorld.err)
	}
	eventually(t, "/readyz", func() error {
		if resp, body := raw(t, theWorld.remote(), "/readyz?verbose", nil); resp.StatusCode != http.StatusOK {
			return errNotYet(body)
		}
		return nil
	})
	return theWorld.world
}

func newWorld() (_ *world, stop func(), err error) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	dir, err := os.MkdirTemp("", "apiserver")
	if err != nil {
		return nil, nil, err
	}
	w := &world{dir: dir, kubelet: &fakeKubelet{}, audit: filepath.Join(dir, "log", "audit.log")}
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, nil, err
	}
	if w.keys, err = pki.Open("", clock.RealClock{}); err != nil {
		return nil, nil, err
	}
	st, err := store.Open(store.Config{Dir: filepath.Join(dir, "api"), Log: log})
	if err != nil {
		return nil, nil, err
	}
	_, v4, _ := net.ParseCIDR("10.96.0.0/24")
	_, v6, _ := net.ParseCIDR("fd00:96::/112")
	ctx, cancel := context.WithCancel(context.Background())
	w.Server, err = New(ctx, Config{
		Store: st, PKI: w.keys, Log: log, ServiceCIDRs: []*net.IPNet{v4, v6}, Advertise: netip.MustParseAddrPort("10.1.0.1:6443"),
		Kubelet: w.kubelet, Metrics: figures{}, AuditPolicy: policy, AuditLog: w.audit,
	})
	if err != nil {
		cancel()
		return nil, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return nil, nil, err
	}
	w.address = "https://" + l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx, l, w.keys.Serving("unipod", "127.0.0.1").GetCertificate) }()
	stop = func() {
		cancel()
		if err := <-served; err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		w.Close()
		st.Close()
		w.kubelet.close()
		os.RemoveAll(dir)
	}
	timeout, done := context.WithTimeout(ctx, time.Minute)
	defer done()
	if err := w.Wait(timeout); err != nil {
		stop()
		return nil, nil, err
	}
	return w, stop, nil
}

// remote is a client's configuration over TLS, without credentials.
func (w *world) remote() *rest.Config {
	return &rest.Config{Host: w.address, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: w.keys.CABundlePEM()}}
}

// as is one with the certificate of a user.
func (w *world) as(t *testing.T, user string, groups ...string) *rest.Config {
	t.Helper()
	c := w.remote()
	cert, key, err := w.keys.Client(user, groups...).PEM()
	if err != nil {
		t.Fatal(err)
	}
	c.CertData, c.KeyData = cert, key
	return c
}

func (w *world) admin(t *testing.T) *rest.Config { return w.as(t, "admin", "system:masters") }

func clients(t *testing.T, c *rest.Config) *kubernetes.Clientset {
	t.Helper()
	k, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func dynamicClient(t *testing.T, c *rest.Config) dynamic.Interface {
	t.Helper()
	k, err := dynamic.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// namespace makes one for a test, with the account that pods need.
func (w *world) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	k := clients(t, w.Loopback())
	ns, err := k.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.CoreV1().ServiceAccounts(ns.Name).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.test/c:1"}}},
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, 20*time.Second, true, func(context.Context) (bool, error) {
		last = so()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, last)
	}
}

func mustContain(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}

// raw asks for a path with headers and reads the answer whole.
func raw(t *testing.T, c *rest.Config, path string, header http.Header) (*http.Response, string) {
	t.Helper()
	h, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := h.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

type errNotYet string

func (e errNotYet) Error() string { return "there is no " + string(e) + " yet" }

var errStillValid = errNotYet("end")

func newAuthority(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.Open("", clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func httpClient(t *testing.T, c *rest.Config) *http.Client {
	t.Helper()
	h, err := rest.HTTPClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func newClient(s *Server) (*kubernetes.Clientset, error) {
	return kubernetes.NewForConfig(s.Loopback())
}
