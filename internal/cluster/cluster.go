// Package cluster puts the upper half of the house together: keys, store, API,
// controllers, scheduler, and the agent that gives the API's pods to the
// engine. It is what `unipod serve` and `unipod play` have in common.
//
// [Start] returns when the API answers, the node is registered and the pods the
// API had are with the engine. Everything runs until [Cluster.Close], or until one part
// fails, which ends the others ([Cluster.Done]); pods keep running. One process
// has one cluster: upstream's scheme, feature gates and metrics are the
// process's.
//
// Floor: 10, over the API and the engine. It decides nothing itself.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/machine"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/shutdown"
	"unipod.dev/unipod/internal/static"
	"unipod.dev/unipod/internal/store"
	"unipod.dev/unipod/internal/upkeep/eviction"
	"unipod.dev/unipod/internal/upkeep/imagegc"
)

// Where a cluster that names nothing else answers.
const (
	DefaultAPI     = "127.0.0.1:6443"
	DefaultKubelet = "127.0.0.1:10250"
)

// KubeconfigName is the name below Run of the administrator's kubeconfig.
const KubeconfigName = "kubeconfig"

// DefaultServices are the networks of cluster IPs, beside the pods' own.
func DefaultServices() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4(10, 67, 0, 0).To4(), Mask: net.CIDRMask(16, 32)},
		{IP: net.ParseIP("fd75:6e69:706f:65::"), Mask: net.CIDRMask(112, 128)},
	}
}

// Config says what a cluster stands on. CRI, Root and Run are required.
type Config struct {
	CRI cri.Service
	// Streams serves the addresses that CRI hands out for exec, attach and
	// port-forward, where it is in this process.
	Streams http.Handler

	Root string // survives a reboot: keys and objects, pods' volumes and logs
	Run  string // what a reboot ends: the kubeconfig
	// Memory keeps keys and objects in memory: they end with the process.
	Memory bool

	// NodeName defaults to the machine's name.
	NodeName string
	// Engine is completed from the rest: what is set here goes first.
	Engine engine.Config
	// Static are the objects of autonomous pods: those come from manifests,
	// and what they refer to does too.
	Static *static.Objects
	// StaticLoaded, when not nil, is closed once the manifests have been read.
	StaticLoaded <-chan struct{}
	// Keep tells of pods in the runtime that belong to somebody else.
	Keep func(types.UID) bool
	// Eviction and Images say what the node does when it runs short; empty
	// ones do nothing.
	Eviction eviction.Policy
	Images   imagegc.Policy
	// Shutdown is how long pods get when the machine goes down; empty: nothing
	// is known of that.
	Shutdown []shutdown.Period
	// Labels of the node when it is registered first.
	Labels map[string]string

	// Kubelet is the address of kubelet's HTTP; default [DefaultKubelet].
	Kubelet string
	// API are the addresses of the API; the first is in the kubeconfig. Port 0
	// is any. Default [DefaultAPI].
	API []string
	// Services are the networks of cluster IPs, one or one of each family;
	// default [DefaultServices].
	Services []*net.IPNet
	// Pods is where pods are, when that is known.
	Pods PodSide
	// AuditPolicy and AuditLog: see package apiserver.
	AuditPolicy, AuditLog string
	// Kubeconfigs are further places for the administrator's kubeconfig.
	Kubeconfigs []string

	Clock clock.WithTicker
	Log   *slog.Logger
}

func (c *Config) complete() (err error) {
	if c.NodeName == "" {
		if c.NodeName, err = machine.Name(); err != nil {
			return err
		}
	}
	if len(c.API) == 0 {
		c.API = []string{DefaultAPI}
	}
	if len(c.Services) == 0 {
		c.Services = c.Pods.defaultServices()
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	c.Log = cmp.Or(c.Log, slog.Default())
	c.Kubelet = cmp.Or(c.Kubelet, DefaultKubelet)
	if c.Images == (imagegc.Policy{}) {
		c.Images.High = 100 // never
	}
	if c.Static == nil {
		c.Static = &static.Objects{}
	}
	return nil
}

// Cluster is what runs. Make one with [Start].
type Cluster struct {
	cfg      Config
	keys     *pki.Authority
	store    *store.Store
	api      *apiserver.Server
	client   kubernetes.Interface
	engine   *engine.Engine
	usage    usage
	kubelets *kubelets
	server   string // the API's URL
	admin    *pki.Certificate

	stop  context.CancelCauseFunc
	group *errgroup.Group
	done  chan struct{}
	err   error // why it ended; set before done is closed
	close []func() error
}

// errClosed is the reason when the owner ends the cluster.
var errClosed = errors.New("closed")

// API is the Kubernetes API, Server its URL.
func (c *Cluster) API() *apiserver.Server { return c.api }
func (c *Cluster) Server() string         { return c.server }

// Client is the administrator's, in this process.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Engine runs the pods.
func (c *Cluster) Engine() *engine.Engine { return c.engine }

// Store has the API's objects.
func (c *Cluster) Store() *store.Store { return c.store }

// Done is closed when the cluster has ended; Err says why, nil when it was
// closed or its context ended.
func (c *Cluster) Done() <-chan struct{} { return c.done }

func (c *Cluster) Err() error {
	<-c.done
	return c.err
}

// Close ends the cluster and waits for it. Pods keep running.
func (c *Cluster) Close() error {
	c.stop(errClosed)
	<-c.done
	errs := []error{}
	for i := len(c.close) - 1; i >= 0; i-- {
		errs = append(errs, c.close[i]())
	}
	c.close = nil
	return errors.Join(errs...)
}
