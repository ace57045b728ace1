// Package controllers runs the control loops of Kubernetes: those of
// kube-controller-manager that make sense on one machine, upstream's code
// unchanged, in this process. [All] is the list of every one there is, with the
// reason it is used or isn't.
//
// It owns their clients, their configuration (few workers, no leader, nothing
// asked for by the clock that an event can tell) and their goroutines: [Run]
// returns when the last has ended. It stores nothing: what controllers know is
// in the API, so a kill at any instant is one that upstream's are made for.
//
// Floor: 6, over klogs. It speaks to the API through the rest.Config it is
// given, whoever serves it.
package controllers

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"

	"unipod.dev/unipod/internal/klogs"
)

// resync is how often a controller is given everything anew although nothing
// happened: upstream's safety net.
const resync = 12 * time.Hour

// A Config says whose controllers they are.
type Config struct {
	// Client reaches the API as one who may do everything.
	Client *rest.Config
	// Informers are shared with whoever else watches the API in this process.
	// Run starts those it needs.
	Informers informers.SharedInformerFactory

	// RootCA is what pods verify the API by (PEM): every namespace's
	// kube-root-ca.crt. When it changes, controllers have to be run anew.
	RootCA []byte
	// SigningCert and SigningKey are files of the authority that signs
	// certificate requests. Without them none is signed.
	SigningCert, SigningKey string
	// AccountKey signs the tokens of Secrets of type service-account-token.
	// Without it they get none.
	AccountKey crypto.Signer

	Log *slog.Logger
}

// trim drops what no controller reads of an object's metadata, and is half of it.
func trim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil && o.GetManagedFields() != nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// named is the configuration of one client. Nothing holds it back: it calls a
// function of this process, whose filters are the API's own.
func named(client *rest.Config, name string) *rest.Config {
	c := rest.CopyConfig(client)
	c.QPS, c.Burst, c.RateLimiter = -1, 0, nil
	rest.AddUserAgent(c, name)
	return c
}

// A set is what controllers are made of.
type set struct {
	Config
	objects  informerfactory.InformerFactory // typed where something else watches the type, metadata otherwise
	metadata metadata.Interface
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	served   *served
	started  chan struct{} // closed once the informers are
}

func (s *set) config(name string) *rest.Config { return named(s.Client, name) }

func (s *set) client(name string) (kubernetes.Interface, error) {
	c, err := kubernetes.NewForConfig(s.config(name))
	if err != nil {
		return nil, fmt.Errorf("a client: %w", err)
	}
	return c, nil
}

func newSet(cfg Config) (*set, error) {
	if cfg.Client == nil || cfg.Informers == nil || cfg.Log == nil {
		return nil, errors.New("controllers need a client, informers and a logger")
	}
	objects, err := metadata.NewForConfig(named(cfg.Client, "metadata-informers"))
	if err != nil {
		return nil, fmt.Errorf("a client for metadata: %w", err)
	}
	disc, err := discovery.NewDiscoveryClientForConfig(named(cfg.Client, "controller-discovery"))
	if err != nil {
		return nil, fmt.Errorf("a client for discovery: %w", err)
	}
	byMetadata := metadatainformer.NewSharedInformerFactoryWithOptions(objects, resync, metadatainformer.WithTransform(trim))
	s := &set{
		Config:   cfg,
		objects:  informerfactory.NewInformerFactory(cfg.Informers, byMetadata),
		metadata: objects,
		mapper:   restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disc)),
		started:  make(chan struct{}),
	}
	s.served, err = newServed(disc, byMetadata, s.mapper.Reset)
	return s, err
}

// Run runs the controllers until ctx is done, and returns when all have ended.
func Run(ctx context.Context, cfg Config) error {
	s, err := newSet(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = klogs.Context(ctx, cfg.Log)

	var loops []func()
	for _, c := range All {
		if c.build == nil {
			continue
		}
		ctx := klogs.Context(ctx, cfg.Log, "controller", c.Name)
		loop, err := c.build(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		if loop != nil {
			loops = append(loops, func() { loop(ctx) })
		}
	}

	var running sync.WaitGroup
	running.Go(func() { s.served.run(ctx) })
	cfg.Informers.StartWithContext(ctx)
	s.objects.Start(ctx.Done())
	close(s.started)
	for _, loop := range loops {
		running.Go(loop)
	}
	cfg.Log.Info("controllers started", "n", len(loops))
	running.Wait()
	return nil
}
