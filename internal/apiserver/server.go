// Package apiserver is the Kubernetes API of one machine: upstream's generic
// server, resource storages, validation, admission and authorization, unchanged,
// put together over a store that is embedded and without a second API server to
// agree with.
//
// It owns the HTTP face (authentication, RBAC, admission, audit, OpenAPI,
// custom resources, metrics.k8s.io) and what an API must hold to be of use:
// the system namespaces, default roles, priority classes and the Service
// default/kubernetes. It promises that nothing is decided before what decides
// has been read (Ready), that what is acknowledged is what the store has made
// durable, and that Secrets reach the store encrypted. A [Server] is safe for
// concurrent use. Upstream's scheme, feature gates and metrics are the
// process's: one Server per process.
//
// Floor: 7. It imports nothing of unipod: store and keys are given to it.
package apiserver

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/api/meta"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/kubelet/client"

	"unipod.dev/unipod/internal/apiserver/inproc"
	"unipod.dev/unipod/internal/apiserver/metricsapi"
)

// A Store keeps objects.
type Store interface {
	Decorator() generic.StorageDecorator
	// Condense returns when nothing durable tells what objects were before.
	Condense(ctx context.Context) error
}

// PKI is the authority that clients, tokens and Secrets are verified by.
type PKI interface {
	// CABundlePEM is the authority of clients and servers; Renewed is closed
	// when it is another than now.
	CABundlePEM() []byte
	Renewed() <-chan struct{}
	ClientVerifyOptions() (x509.VerifyOptions, bool)
	ServiceAccountKey() crypto.Signer
	ServiceAccountPublicKeys() []any
	Transformer() (value.Transformer, error)
	// OldEncryptionKeys is how many keys a Transformer has beside the one that
	// writes; they are dropped when nothing is encrypted by them any more.
	OldEncryptionKeys() int
	DropOldEncryptionKeys() error
}

// Config is what a server is made of.
type Config struct {
	Store Store
	PKI   PKI
	// Advertise is where pods and clients on this machine reach the API: the
	// endpoint of the Service default/kubernetes. A loopback address can't be
	// an endpoint: the Service has none then.
	Advertise netip.AddrPort
	// ServiceCIDRs are Services' addresses: one range, or one of each family.
	ServiceCIDRs []*net.IPNet
	// NodePorts are upstream's 30000-32767 when empty.
	NodePorts utilnet.PortRange
	// Kubelet finds the node's HTTP server, for logs, exec, attach,
	// port-forward and proxy. Without one those requests fail.
	Kubelet client.ConnectionInfoGetter
	// Metrics is what pods and the node use. Without it metrics.k8s.io answers
	// that it is unavailable.
	Metrics metricsapi.Source
	// AuditPolicy is a file with an audit.k8s.io Policy, AuditLog the file that
	// requests are logged to by it. Both or neither are given.
	AuditPolicy, AuditLog string
	Log                   *slog.Logger
}

// A Server is a running API.
type Server struct {
	log        *slog.Logger
	generic    *genericapiserver.GenericAPIServer
	config     *genericapiserver.Config
	crds       *apiextensions.CustomResourceDefinitions
	admitter   *admitter
	admission  *admissionParts
	allocators *serviceAllocators
	secrets    *genericregistry.Store
	client     kubernetes.Interface
	shared     informers.SharedInformerFactory
	loopback   *rest.Config
	handler    http.Handler

	stop      context.CancelFunc
	stopping  context.Context
	ready     chan struct{}
	rolesMade chan struct{} // closed when the default roles are there
	group     sync.WaitGroup
	failure   error // why it never got ready; set before stop
	auditLog  *lumberjack.Logger
}

// New puts a server together and starts it: it is ready a little later. It
// runs until ctx ends or Close is called; Close must be called in any case.
func New(ctx context.Context, c Config) (_ *Server, err error) {
	if c.Store == nil || c.PKI == nil {
		return nil, errors.New("the API server needs a store and keys")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Kubelet == nil {
		c.Kubelet = noKubelet{}
	}
	if c.NodePorts.Size == 0 {
		c.NodePorts = utilnet.PortRange{Base: 30000, Size: 2768}
	}
	s := &Server{log: c.Log, ready: make(chan struct{}), rolesMade: make(chan struct{})}
	s.stopping, s.stop = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	carrier := inproc.New(s.stopping)
	s.loopback = loopbackConfig(carrier)
	if err := s.assemble(c); err != nil {
		return nil, fmt.Errorf("the API server: %w", err)
	}
	s.handler = gate(s.generic.Handler, s.ready, s.stopping)
	carrier.Serve(s.handler)
	s.generic.PrepareRun()
	s.group.Go(func() { s.start(c) })
	return s, nil
}

// Handler serves the API. Requests that come before the server is ready wait.
func (s *Server) Handler() http.Handler { return s.handler }

// Loopback is a client's configuration for this process: it is authenticated
// as system:apiserver of system:masters, by a function call.
func (s *Server) Loopback() *rest.Config { return rest.CopyConfig(s.loopback) }

// Informers are shared by all of this process: who needs a kind takes its
// informer here, and starts the factory again. Objects have no managed fields.
func (s *Server) Informers() informers.SharedInformerFactory { return s.shared }

// Ready is closed when the server decides about requests.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Wait is for the server to be ready, or says why it never will.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.stopping.Done():
		if s.failure != nil {
			return s.failure
		}
		return inproc.ErrStopped
	}
}

// Close ends what New started and waits for it.
func (s *Server) Close() {
	s.stop()
	s.group.Wait()
	s.shared.Shutdown()
	s.crds.Informers.Shutdown()
	s.generic.Destroy()
	s.closeAudit()
}

// start reads what decides about requests and makes what an API must have.
// Upstream's hooks end the process when they fail: what they wait for is there
// before they run.
func (s *Server) start(c Config) {
	s.shared.StartWithContext(s.stopping)
	s.crds.Informers.Start(s.stopping.Done())
	if !s.synced() {
		return
	}
	fail := func(err error) {
		s.failure = fmt.Errorf("the API server: %w", err)
		s.log.Error("the API server can't start", "err", err)
		s.stop()
	}
	chain, err := s.admission.plugins()
	if err != nil {
		fail(err)
		return
	}
	// The plugins have asked for informers of their own.
	s.shared.StartWithContext(s.stopping)
	if !s.synced() {
		return
	}
	s.generic.RunPostStartHooks(s.stopping)
	s.admitter.chain = chain
	close(s.admitter.known)
	if err := s.firstObjects(c); err != nil {
		fail(err)
		return
	}
	if err := s.services(c); err != nil {
		fail(err)
		return
	}
	close(s.ready)
	s.laterObjects(c)
	s.group.Go(func() { s.encryptAnew(c) })
}

// synced waits until everything is read, and says what it waits for when that
// takes long: an object that can't be decoded is told of by its informer only.
func (s *Server) synced() bool {
	for {
		ctx, cancel := context.WithTimeout(s.stopping, slowStart)
		result := s.shared.WaitForCacheSyncWithContext(ctx)
		cancel()
		if result.Err == nil {
			break
		}
		if s.stopping.Err() != nil {
			return false
		}
		var kinds []string
		for kind, done := range result.Synced {
			if !done {
				kinds = append(kinds, kind.String())
			}
		}
		slices.Sort(kinds)
		s.log.Warn("the API server waits for what it has to read before it can decide about requests", "kinds", kinds)
	}
	return cache.WaitFor(s.stopping, "", s.crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer().HasSyncedChecker())
}

// trim takes from every object in memory what only the API server's writes
// need: managed fields are half of a small object.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil && m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

const (
	// slowStart is how long a start takes when something is wrong.
	slowStart = 10 * time.Second
	// resync: nothing here misses events, so nothing has to be told again.
	resync = 0 * time.Second
	// minWatch is how long a watch lasts at least, upstream's.
	minWatch = 30 * time.Minute
)
