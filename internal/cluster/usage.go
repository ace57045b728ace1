package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/kubelet/client"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"unipod.dev/unipod/internal/stats"
)

const (
	// askKubelet is how long another node may take to say what it uses:
	// metrics-server's default.
	askKubelet = 10 * time.Second
	// maxSummary bounds what it may say.
	maxSummary = 32 << 20
)

// usage is metrics.k8s.io's source: this node's own figures, and what other
// kubelets say of theirs. The API is there before the node that is measured.
type usage struct {
	now   atomic.Pointer[stats.Usage]
	other atomic.Pointer[summaries]
}

var errNoNode = apierrors.NewServiceUnavailable("the node isn't measured yet")

func (u *usage) set(own *stats.Usage, other *summaries) {
	u.other.Store(other)
	u.now.Store(own)
}

// NodeMetrics implements metricsapi.Source.
func (u *usage) NodeMetrics(ctx context.Context) ([]metrics.NodeMetrics, error) {
	own := u.now.Load()
	if own == nil {
		return nil, errNoNode
	}
	other := u.other.Load()
	told := other.ask(ctx)
	all, err := own.NodeMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return append(all, other.nodeMetrics(told())...), nil
}

// PodMetrics implements metricsapi.Source.
func (u *usage) PodMetrics(ctx context.Context, namespace string) ([]metrics.PodMetrics, error) {
	own := u.now.Load()
	if own == nil {
		return nil, errNoNode
	}
	other := u.other.Load()
	told := other.ask(ctx)
	all, err := own.PodMetrics(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return append(all, other.podMetrics(told(), namespace)...), nil
}

// summaries asks other nodes' kubelets what they use.
type summaries struct {
	own      string // the node that isn't asked
	nodes    listers.NodeLister
	pods     listers.PodLister
	kubelets client.ConnectionInfoGetter
	log      *slog.Logger
}

type summary struct {
	node    *v1.Node
	summary *statsapi.Summary
}

// ask asks all at once; told waits for the answers. A node that doesn't answer
// is left out, as metrics-server does.
func (s *summaries) ask(ctx context.Context) (told func() []summary) {
	nodes, err := s.nodes.List(labels.Everything())
	if err != nil { // a lister of memory doesn't fail
		return func() []summary { return nil }
	}
	answers := make([]*statsapi.Summary, len(nodes))
	var asking sync.WaitGroup
	for i, n := range nodes {
		if n.Name == s.own || gone(n) {
			continue
		}
		asking.Go(func() {
			var err error
			if answers[i], err = s.askOne(ctx, n.Name); err != nil {
				s.log.Debug("a node doesn't say what it uses", "node", n.Name, "err", err)
			}
		})
	}
	return func() (all []summary) {
		asking.Wait()
		for i, a := range answers {
			if a != nil {
				all = append(all, summary{nodes[i], a})
			}
		}
		return all
	}
}

func (s *summaries) nodeMetrics(told []summary) (all []metrics.NodeMetrics) {
	for _, t := range told {
		if m, ok := stats.NodeMetrics(t.node, t.summary); ok {
			all = append(all, m)
		}
	}
	return all
}

func (s *summaries) podMetrics(told []summary, namespace string) (all []metrics.PodMetrics) {
	for _, t := range told {
		for i := range t.summary.Pods {
			figures := &t.summary.Pods[i]
			ref := figures.PodRef
			if namespace != "" && ref.Namespace != namespace {
				continue
			}
			// A kubelet tells of its own pods only, whatever it says.
			pod, err := s.pods.Pods(ref.Namespace).Get(ref.Name)
			if err != nil || pod.Spec.NodeName != t.node.Name {
				continue
			}
			if m, ok := stats.PodMetrics(pod, figures); ok {
				all = append(all, m)
			}
		}
	}
	return all
}

// gone tells whether the API has given up hearing of a node.
func gone(n *v1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionUnknown
		}
	}
	return true
}

func (s *summaries) askOne(ctx context.Context, node string) (_ *statsapi.Summary, err error) {
	ctx, cancel := context.WithTimeout(ctx, askKubelet)
	defer cancel()
	info, err := s.kubelets.GetConnectionInfo(ctx, types.NodeName(node))
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("%s://%s/stats/summary?only_cpu_and_memory=true", info.Scheme, net.JoinHostPort(info.Hostname, info.Port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := info.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	said := &statsapi.Summary{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxSummary)).Decode(said); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return said, nil
}
