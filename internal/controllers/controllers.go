// Package controllers runs the control loops of Kubernetes: those of
// kube-controller-manager that make sense on one machine, upstream's code
// unchanged, in this process. [All] is the list of every one there is, with the
// reason it is used or isn't.
//
// It owns their clients, their configuration (few workers, no leader, nothing
// asked for by the clock that an event can tell) and their goroutines: [Run]
// returns when the last has ended. What controllers know is
// in the API, so a kill at any instant is one that upstream's are made for. The
// directories of volumes made on demand are its own, one for each of those in
// the API.
//
// Floor: 6, over klogs and volume. It speaks to the API through the rest.Config it is
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
	// Making is held while a controller is made. Who else adds indexers to the
	// informers holds it too: upstream's code looks for those there are without
	// a lock.
	Making sync.Locker

	// RootCA is what pods verify the API by: every namespace's
	// kube-root-ca.crt.
	RootCA Authority
	// SigningCert and SigningKey are files of the authority that signs
	// certificate requests. Without them none is signed.
	SigningCert, SigningKey string
	// AccountKey signs the tokens of Secrets of type service-account-token.
	// Without it they get none.
	AccountKey crypto.Signer

	// Volumes is the directory of volumes that are made on demand, by the
	// StorageClass that is made with it, on the node named. Without it none are.
	Volumes  string
	NodeName string

	Log *slog.Logger
}

// An Authority says by what certificates (PEM) the API is verified. Renewed is
// closed when they are others than now.
type Authority interface {
	CABundlePEM() []byte
	Renewed() <-chan struct{}
}

// trim drops what no controller reads of an object's metadata, and is half of it.
func trim(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil && o.GetManagedFields() != nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// Agent is who the controllers are to the API: in its audit log, and as the
// manager of the fields they write.
const Agent = "kube-controller-manager"

// A set is what controllers are made of. They share their clients: upstream's
// have one each to be authorized each for its own, and to not hold each other
// up, but here they call a function of this process, as one who may do all.
type set struct {
	Config
	config   *rest.Config
	client   kubernetes.Interface
	metadata metadata.Interface
	objects  informerfactory.InformerFactory // typed where something else watches the type, metadata otherwise
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	served   *served
	shared   informers.SharedInformerFactory // without the gate
	started  chan struct{}                   // closed once the informers are
	fail     context.CancelCauseFunc         // ends all
}

func newSet(ctx context.Context, cfg Config) (*set, error) {
	if cfg.Client == nil || cfg.Informers == nil || cfg.Making == nil || cfg.RootCA == nil || cfg.Log == nil {
		return nil, errors.New("controllers need a client, informers, their lock, a root CA and a logger")
	}
	s := &set{Config: cfg, config: rest.CopyConfig(cfg.Client), started: make(chan struct{})}
	s.shared, s.Informers = cfg.Informers, &gated{cfg.Informers, gate{s.started, ctx.Done()}}
	s.config.UserAgent = Agent
	s.config.QPS, s.config.Burst, s.config.RateLimiter = -1, 0, nil
	var err error
	if s.client, err = kubernetes.NewForConfig(s.config); err != nil {
		return nil, fmt.Errorf("a client: %w", err)
	}
	if s.metadata, err = metadata.NewForConfig(s.config); err != nil {
		return nil, fmt.Errorf("a client for metadata: %w", err)
	}
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(s.client.Discovery()))
	s.served = newServed(s.client.Discovery(), s.mapper.Reset)
	byMetadata := metadatainformer.NewSharedInformerFactoryWithOptions(parked{s.metadata, s.served.next}, resync, metadatainformer.WithTransform(trim))
	s.objects = informerfactory.NewInformerFactory(cfg.Informers, byMetadata)
	return s, s.served.watch(byMetadata)
}

// patience is how long the controllers together wait for what they watch.
const patience = 2 * time.Second

// synced waits until the shared informers know what there is. Every controller
// does so for its own, but looks ten times a second only, which is longer than a
// pod takes to start. If one never gets there, the others don't wait for it.
func (s *set) synced(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.Informers.WaitForCacheSyncWithContext(ctx)
}

// Run runs the controllers until ctx is done, and returns when all have ended.
// One that can't be made ends the others.
func Run(ctx context.Context, cfg Config) error {
	all, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s, err := newSet(all, cfg)
	if err != nil {
		return err
	}
	s.fail = fail
	all = klogs.Context(all, cfg.Log)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.served.run(all) })
	loops, err := s.make(all)
	if err != nil {
		fail(err)
	}
	for _, loop := range loops {
		running.Go(loop)
	}
	cfg.Log.Info("controllers started", "n", len(loops))
	running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(all)
}

// make makes the controllers; they are to be run.
func (s *set) make(ctx context.Context) (loops []func(), err error) {
	loops, err = s.build(ctx)
	if err == nil {
		s.start(ctx)
	}
	return loops, err
}

func (s *set) build(ctx context.Context) (loops []func(), err error) {
	s.Making.Lock()
	defer s.Making.Unlock()
	for _, c := range All {
		if c.build == nil {
			continue
		}
		ctx := klogs.Context(ctx, s.Log, "controller", c.Name)
		loop, err := c.build(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		if loop != nil {
			loops = append(loops, func() { loop(ctx) })
		}
	}
	return loops, nil
}

// start starts the informers that were asked for, and opens the gate.
func (s *set) start(ctx context.Context) {
	s.Informers.StartWithContext(ctx)
	s.objects.Start(ctx.Done())
	close(s.started)
	s.synced(ctx)
}
