// Package kubeletapi is kubelet's HTTP interface: what the API server asks the
// node for (logs, exec, attach, port-forward) and what monitoring scrapes
// (statistics and metrics).
//
// It owns no state. Paths, parameters and words are kubelet's. Every request
// is authenticated, by a client certificate of the cluster's authority or a
// bearer token, and authorized by the API server, each path as the nodes
// subresource that kubelet takes it for; there is nothing anonymous. Streams
// go to the runtime: by a function call where it is in this process, else to
// the address the runtime names.
//
// Floor: 9, over logview, the CRI line and what the engine counts.
package kubeletapi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/legacyregistry"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/engine"
)

// Stats measures, with the signatures of kubelet's summary provider.
type Stats interface {
	Get(ctx context.Context, update bool) (*statsapi.Summary, error)
	GetCPUAndMemoryStats(ctx context.Context) (*statsapi.Summary, error)
}

// Config is what a server answers from. NodeName, Client, ClientCA, CRI and
// Pods are required.
type Config struct {
	NodeName string
	// Client asks the API server who a token is and what somebody may do.
	Client kubernetes.Interface
	// ClientCA verifies client certificates.
	ClientCA ClientCA
	CRI      cri.Service
	// Pods are those of the node with their present status. They are shared
	// and not modified.
	Pods func() []*v1.Pod
	// Watch gets a value whenever the status of a pod may have changed, until
	// ctx ends; nil: who waits for one looks now and then.
	Watch func(ctx context.Context, uid types.UID) <-chan struct{}
	// Streams serves the addresses that CRI hands out for exec, attach and
	// port-forward, where that is in this process; nil: they are dialled.
	Streams http.Handler
	// Stats is nil where nobody measures.
	Stats Stats
	// Probes are the results of the pods' probes; nil where nobody counts.
	Probes func() []engine.ProbeCount

	Clock clock.WithTicker // default: the real one
	Log   *slog.Logger     // default: slog.Default()
}

// Server answers. Its methods may be called concurrently.
type Server struct {
	cfg  Config
	auth *auth
	mux  *http.ServeMux
}

// New makes a server; what it listens on is the caller's.
func New(cfg Config) (*Server, error) {
	if cfg.NodeName == "" || cfg.Client == nil || cfg.ClientCA == nil || cfg.CRI == nil || cfg.Pods == nil {
		return nil, fmt.Errorf("kubeletapi: NodeName, Client, ClientCA, CRI and Pods are required: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	auth, err := newAuth(&cfg)
	if err != nil {
		return nil, fmt.Errorf("kubeletapi: %w", err)
	}
	s := &Server{cfg: cfg, auth: auth, mux: http.NewServeMux()}
	s.routes()
	return s, nil
}

// Handler serves over TLS; client certificates are to be asked for, and are
// verified here.
func (s *Server) Handler() http.Handler { return s.auth.protect(s.mux) }

func (s *Server) routes() {
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	s.mux.HandleFunc("GET /pods", s.pods)
	s.mux.HandleFunc("GET /pods/", s.pods)
	s.mux.HandleFunc("GET /runningpods/", s.runningPods)
	s.mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for path, h := range map[string]http.HandlerFunc{
			"/exec/{namespace}/{pod}/{container}":         s.exec,
			"/exec/{namespace}/{pod}/{uid}/{container}":   s.exec,
			"/attach/{namespace}/{pod}/{container}":       s.attach,
			"/attach/{namespace}/{pod}/{uid}/{container}": s.attach,
			"/portForward/{namespace}/{pod}":              s.portForward,
			"/portForward/{namespace}/{pod}/{uid}":        s.portForward,
		} {
			s.mux.HandleFunc(method+" "+path, h)
		}
	}
	s.mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	s.mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	s.mux.Handle("GET /metrics", legacyregistry.Handler())
	s.mux.HandleFunc("GET /metrics/cadvisor", s.containerMetrics)
	if s.cfg.Probes != nil {
		s.mux.HandleFunc("GET /metrics/probes", s.probeMetrics)
	}
	if s.cfg.Stats != nil {
		s.mux.HandleFunc("GET /stats/summary", s.summary)
		s.mux.HandleFunc("GET /stats/summary/", s.summary)
		s.mux.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	}
}

// find finds the pod a request's path names; of several with the same name,
// the newest. The error is the client's.
func (s *Server) find(r *http.Request) (*v1.Pod, error) {
	namespace, name, uid := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid")
	var found *v1.Pod
	for _, pod := range s.cfg.Pods() {
		if pod.Namespace != namespace || pod.Name != name || uid != "" && string(pod.UID) != uid {
			continue
		}
		if found == nil || cmp.Or(pod.CreationTimestamp.Compare(found.CreationTimestamp.Time), strings.Compare(string(pod.UID), string(found.UID))) > 0 {
			found = pod
		}
	}
	if found == nil {
		return nil, fmt.Errorf("pod %q does not exist", name)
	}
	return found, nil
}

// fail answers with an error, as plain text like kubelet.
func fail(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}
