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

	"golang.org/x/sync/errgroup"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
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

// Config says what a cluster stands on. Root, Run and NodeName are required.
type Config struct {
	Root string // survives a reboot: keys and objects
	Run  string // what a reboot ends: the kubeconfig
	// Memory keeps keys and objects in memory: they end with the process.
	Memory bool

	NodeName string
	// API are the addresses of the API; the first is in the kubeconfig. Port 0
	// is any. Default [DefaultAPI].
	API []string
	// Services are the networks of cluster IPs, one or one of each family;
	// default [DefaultServices].
	Services []*net.IPNet
	// Kubeconfigs are further places for the administrator's kubeconfig.
	Kubeconfigs []string

	Clock clock.WithTicker
	Log   *slog.Logger
}

func (c *Config) complete() {
	if len(c.API) == 0 {
		c.API = []string{DefaultAPI}
	}
	if len(c.Services) == 0 {
		c.Services = DefaultServices()
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	c.Log = cmp.Or(c.Log, slog.Default())
}

// Cluster is what runs. Make one with [Start].
type Cluster struct {
	cfg    Config
	keys   *pki.Authority
	store  *store.Store
	api    *apiserver.Server
	server string // the API's URL
	admin  *pki.Certificate

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
