package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/client"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// fakeKubelet answers what a node's HTTP server is asked for.
type fakeKubelet struct {
	once   sync.Once
	server *httptest.Server
}

func (k *fakeKubelet) start() *httptest.Server {
	k.once.Do(func() {
		k.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Query().Get("follow") != "true" {
				fmt.Fprintf(w, "%s %s", req.Method, req.URL.RequestURI())
				return
			}
			fmt.Fprintln(w, "first")
			w.(http.Flusher).Flush()
			<-req.Context().Done()
		}))
		// Proxies may not be sent to a loopback address.
		if l, err := net.Listen("tcp", net.JoinHostPort(hostIP(), "0")); err == nil {
			k.server.Listener.Close()
			k.server.Listener = l
		}
		k.server.StartTLS()
	})
	return k.server
}

func (k *fakeKubelet) close() {
	if k.server != nil {
		k.server.CloseClientConnections()
		k.server.Close()
	}
}

func (k *fakeKubelet) GetConnectionInfo(_ context.Context, node types.NodeName) (*client.ConnectionInfo, error) {
	if node != "here" {
		return nil, apierrors.NewServiceUnavailable("node " + string(node) + " is unknown")
	}
	u, err := url.Parse(k.start().URL)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a test's own server
	return &client.ConnectionInfo{Scheme: "https", Hostname: u.Hostname(), Port: u.Port(), Transport: t, InsecureSkipTLSVerifyTransport: t}, nil
}

// figures are of one node and two pods.
type figures struct{}

func usage(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

func (figures) NodeMetrics(context.Context) ([]metricsv1beta1.NodeMetrics, error) {
	return []metricsv1beta1.NodeMetrics{{ObjectMeta: metav1.ObjectMeta{Name: "here"}, Timestamp: metav1.Now(), Window: metav1.Duration{Duration: time.Second}, Usage: usage("250m", "64Mi")}}, nil
}

func (figures) PodMetrics(_ context.Context, namespace string) ([]metricsv1beta1.PodMetrics, error) {
	var all []metricsv1beta1.PodMetrics
	for _, ns := range []string{"one", "two"} {
		if namespace == "" || namespace == ns {
			all = append(all, metricsv1beta1.PodMetrics{
				ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: ns, Labels: map[string]string{"in": ns}},
				Containers: []metricsv1beta1.ContainerMetrics{{Name: "a", Usage: usage("1m", "1Mi")}, {Name: "b", Usage: usage("2m", "3Mi")}},
			})
		}
	}
	return all, nil
}

// hostIP is an address of this machine that isn't its loopback's, or "".
func hostIP() string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}
