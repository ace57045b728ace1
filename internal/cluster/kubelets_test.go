package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/kubelet/client"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"unipod.dev/unipod/internal/pki"
)

func authority(t *testing.T, clk clock.WithTicker) *pki.Authority {
	t.Helper()
	a, err := pki.Open("", clk)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// kubeletServer is one that lets in whoever has a certificate of the authority, as a
// real one does, and says who that was.
func kubeletServer(t *testing.T, cert *pki.Certificate, clients *pki.Authority, say http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		opts, _ := clients.ClientVerifyOptions()
		if len(req.TLS.PeerCertificates) == 0 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if _, err := req.TLS.PeerCertificates[0].Verify(opts); err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		say(w, req)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{GetCertificate: cert.GetCertificate, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	s.TLS.Certificates = nil // httptest's own
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, text+" to "+req.TLS.PeerCertificates[0].Subject.CommonName)
	}
}

func nodeAt(name string, at netip.AddrPort) *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"called": name}},
		Status: v1.NodeStatus{
			// The name is of no use: nobody resolves it.
			Addresses:       []v1.NodeAddress{{Type: v1.NodeHostName, Address: name + ".invalid"}, {Type: v1.NodeInternalIP, Address: at.Addr().String()}},
			DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: int32(at.Port())}},
			Conditions:      []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}},
		},
	}
}

func ask(info *client.ConnectionInfo, via http.RoundTripper) (string, error) {
	req, err := http.NewRequest(http.MethodGet, info.Scheme+"://"+net.JoinHostPort(info.Hostname, info.Port)+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := via.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// Every node's kubelet is found where its Node object says, and verified; this
// node's is this process, whatever the object says.
func TestKubelets(t *testing.T) {
	keys, stranger := authority(t, clock.RealClock{}), authority(t, clock.RealClock{})
	own := kubeletServer(t, keys.NodeServing("here", "here"), keys, says("here"))
	second := kubeletServer(t, keys.NodeServing("second", "second", "127.0.0.1"), keys, says("second"))
	selfSigned := kubeletServer(t, stranger.NodeServing("third", "127.0.0.1"), keys, says("third"))
	nodes := map[string]*v1.Node{
		"here":   nodeAt("here", second), // who may write its status may not move it
		"second": nodeAt("second", second),
		"third":  nodeAt("third", selfSigned),
		"other":  nodeAt("other", own), // whose certificate is of another name
		"lost":   {ObjectMeta: metav1.ObjectMeta{Name: "lost"}},
	}
	k, err := newKubelets(keys, "here", own, client.NodeGetterFunc(func(_ context.Context, name string, _ metav1.GetOptions) (*v1.Node, error) {
		if n := nodes[name]; n != nil {
			return n, nil
		}
		return nil, apierrors.NewNotFound(v1.Resource("nodes"), name)
	}))
	if err != nil {
		t.Fatal(err)
	}
	connect := func(node string) *client.ConnectionInfo {
		t.Helper()
		info, err := k.GetConnectionInfo(t.Context(), types.NodeName(node))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	for _, node := range []string{"here", "second"} {
		info := connect(node)
		for _, via := range []http.RoundTripper{info.Transport, info.InsecureSkipTLSVerifyTransport} {
			if got, err := ask(info, via); err != nil || got != node+" to kube-apiserver-kubelet-client" {
				t.Errorf("%s: %q, %v", node, got, err)
			}
		}
	}
	var unknown x509.UnknownAuthorityError
	if got, err := ask(connect("third"), connect("third").Transport); !errors.As(err, &unknown) {
		t.Errorf("a kubelet of another authority: %q, %v", got, err)
	}
	if got, err := ask(connect("third"), connect("third").InsecureSkipTLSVerifyTransport); err != nil || got != "third to kube-apiserver-kubelet-client" {
		t.Errorf("unverified: %q, %v", got, err)
	}
	var name x509.HostnameError
	if got, err := ask(connect("other"), connect("other").Transport); !errors.As(err, &name) {
		t.Errorf("a kubelet with the certificate of another: %q, %v", got, err)
	}
	if info, err := k.GetConnectionInfo(t.Context(), "lost"); err == nil {
		t.Errorf("a node without an address is at %s", info.Hostname)
	}
	if _, err := k.GetConnectionInfo(t.Context(), "nowhere"); !apierrors.IsNotFound(err) {
		t.Errorf("a node that isn't there: %v", err)
	}
}

// A kubelet whose certificate is of the renewed authority is trusted by the
// API that runs since before.
func TestKubeletsOfRenewedAuthority(t *testing.T) {
	const year = 365 * 24 * time.Hour
	// TLS looks at the machine's clock: the past is what is faked.
	clk := clocktesting.NewFakeClock(time.Now().Add(-9*year - 24*time.Hour))
	keys := authority(t, clk)
	at := kubeletServer(t, keys.NodeServing("second", "127.0.0.1", "here"), keys, says("second"))
	second := nodeAt("second", at)
	k, err := newKubelets(keys, "here", at, client.NodeGetterFunc(func(context.Context, string, metav1.GetOptions) (*v1.Node, error) { return second, nil }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.GetConnectionInfo(t.Context(), "second"); err != nil { // makes the transports
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	renewed, ended := make(chan struct{}, 10), make(chan error, 1)
	go func() { ended <- keys.Run(ctx, func() { renewed <- struct{}{} }) }()
	for !clk.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	clk.SetTime(time.Now())
	<-renewed
	for _, node := range []types.NodeName{"here", "second"} {
		info, err := k.GetConnectionInfo(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ask(info, info.Transport); err != nil || got != "second to kube-apiserver-kubelet-client" {
			t.Errorf("%s: %q, %v", node, got, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// What other nodes use is what their kubelets say of pods that are theirs; one
// that says nothing, or nonsense, hides nobody else.
func TestSummaries(t *testing.T) {
	keys := authority(t, clock.RealClock{})
	cpu, memory := uint64(250e6), uint64(64<<20)
	figures := statsapi.Summary{
		Node: statsapi.NodeStats{CPU: &statsapi.CPUStats{UsageNanoCores: &cpu}, Memory: &statsapi.MemoryStats{WorkingSetBytes: &memory}},
	}
	for _, name := range []string{"mine", "yours", "unknown"} {
		figures.Pods = append(figures.Pods, statsapi.PodStats{
			PodRef:     statsapi.PodReference{Name: name, Namespace: "default"},
			Containers: []statsapi.ContainerStats{{Name: "c", CPU: &statsapi.CPUStats{UsageNanoCores: &cpu}, Memory: &statsapi.MemoryStats{WorkingSetBytes: &memory}}},
		})
	}
	good := kubeletServer(t, keys.NodeServing("second", "127.0.0.1"), keys, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.RequestURI() != "/stats/summary?only_cpu_and_memory=true" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if err := json.NewEncoder(w).Encode(figures); err != nil {
			t.Error(err)
		}
	})
	bad := kubeletServer(t, keys.NodeServing("third", "127.0.0.1"), keys, says("nonsense"))
	refuses := kubeletServer(t, keys.NodeServing("fourth", "127.0.0.1"), authority(t, clock.RealClock{}), says(""))
	gone := nodeAt("gone", good)
	gone.Status.Conditions[0].Status = v1.ConditionUnknown
	shared := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	nodes, pods := shared.Core().V1().Nodes(), shared.Core().V1().Pods()
	for _, n := range []*v1.Node{nodeAt("here", good), nodeAt("second", good), nodeAt("third", bad), nodeAt("fourth", refuses), gone} {
		if err := nodes.Informer().GetStore().Add(n); err != nil {
			t.Fatal(err)
		}
	}
	for name, node := range map[string]string{"mine": "second", "yours": "here"} {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": name}}, Spec: v1.PodSpec{NodeName: node}}
		if err := pods.Informer().GetStore().Add(pod); err != nil {
			t.Fatal(err)
		}
	}
	k, err := newKubelets(keys, "here", good, client.NodeGetterFunc(func(_ context.Context, name string, _ metav1.GetOptions) (*v1.Node, error) {
		return nodes.Lister().Get(name)
	}))
	if err != nil {
		t.Fatal(err)
	}
	s := &summaries{own: "here", nodes: nodes.Lister(), pods: pods.Lister(), kubelets: k, log: slog.New(slog.DiscardHandler)}
	told := s.ask(t.Context())()
	if len(told) != 1 || told[0].node.Name != "second" {
		t.Fatalf("told of %d nodes: %v", len(told), told)
	}
	if m := s.nodeMetrics(told); len(m) != 1 || m[0].Name != "second" || m[0].Labels["called"] != "second" || m[0].Usage.Cpu().MilliValue() != 250 {
		t.Errorf("nodes: %v", m)
	}
	for namespace, want := range map[string]int{"": 1, "default": 1, "other": 0} {
		m := s.podMetrics(told, namespace)
		if len(m) != want {
			t.Fatalf("pods of %q: %v", namespace, m)
		}
		if want > 0 && (m[0].Name != "mine" || m[0].Labels["app"] != "mine" || m[0].Containers[0].Usage.Memory().Value() != 64<<20) {
			t.Errorf("pods of %q: %v", namespace, m)
		}
	}
}
