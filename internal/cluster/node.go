package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"

	"unipod.dev/unipod/internal/agent"
	"unipod.dev/unipod/internal/agent/objects"
	"unipod.dev/unipod/internal/agent/register"
	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/kubeletapi"
	"unipod.dev/unipod/internal/linger"
	"unipod.dev/unipod/internal/machine"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/shutdown"
	"unipod.dev/unipod/internal/stats"
	"unipod.dev/unipod/internal/upkeep"
)

// headerTimeout is how long a client of kubelet's HTTP may take for a header.
const headerTimeout = 30 * time.Second

// startNode starts kubelet's part: engine, agent, the Node object, upkeep and
// the HTTP that the API asks for logs and streams. ready is closed when the
// pods the API had are with the engine.
func (c *Cluster) startNode(ctx context.Context, listener net.Listener) (ready <-chan struct{}, err error) {
	defer func() {
		if err != nil {
			listener.Close()
		}
	}()
	cfg, shared := &c.cfg, c.api.Informers()
	sources := objects.New(objects.Config{Client: c.client, Informers: shared, Node: cfg.NodeName, Clock: cfg.Clock, Log: cfg.Log})
	// Both are there before the engine runs and asks.
	var keeper *upkeep.Keeper
	var down *shutdown.Manager
	var a *agent.Agent
	record := func(kind, reason, message string) { a.RecordNode(kind, reason, message) }
	ecfg, err := c.engineConfig(sources)
	if err != nil {
		return nil, err
	}
	ecfg.Admit = func(pod *v1.Pod) (reason, message string) {
		if down != nil {
			reason, message = down.Admit(pod)
		}
		if reason == "" {
			reason, message = keeper.Admit(pod)
		}
		return reason, message
	}
	if c.engine, err = engine.New(ecfg); err != nil {
		return nil, err
	}
	figures := stats.New(stats.Config{
		CRI: cfg.CRI, NodeName: cfg.NodeName, PodsDir: ecfg.Dir, LogDir: ecfg.LogDir, Pods: c.engine.Pods, Volumes: c.engine.Usages, Log: cfg.Log,
	})
	keeper, err = upkeep.New(upkeep.Config{
		CRI: cfg.CRI, Engine: c.engine, Stats: figures, Eviction: cfg.Eviction, Images: cfg.Images, Record: record, Clock: cfg.Clock, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if len(cfg.Shutdown) > 0 {
		if down, err = shutdown.New(shutdown.Config{Engine: c.engine, Periods: cfg.Shutdown, Record: record, Clock: cfg.Clock, Log: cfg.Log}); err != nil {
			return nil, err
		}
		c.group.Go(func() error { return down.Run(ctx) })
	}
	object, err := register.New(register.Config{
		Client: c.client, CRI: cfg.CRI, Name: cfg.NodeName, Version: apiserver.KubernetesVersion, Root: cfg.Root, Addresses: hostAddresses(ecfg.Node.HostIPs),
		Port: int32(reachable(listener.Addr()).Port()), Labels: cfg.Labels, Pressure: keeper, Record: record,
		Problem: func() error {
			if down != nil && down.ShuttingDown() {
				return errors.New("node is shutting down")
			}
			return nil
		},
		Clock: cfg.Clock, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	c.usage.set(stats.NewUsage(figures, object.Node), &summaries{
		own: cfg.NodeName, nodes: shared.Core().V1().Nodes().Lister(), pods: shared.Core().V1().Pods().Lister(), kubelets: c.kubelets, log: cfg.Log,
	})
	a, err = agent.New(agent.Config{
		Client: c.client, Informers: shared, NodeName: cfg.NodeName, Engine: c.engine, Objects: sources, Node: object,
		StaticLoaded: cfg.StaticLoaded, Keep: cfg.Keep, Clock: cfg.Clock, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	server, err := kubeletapi.New(kubeletapi.Config{
		NodeName: cfg.NodeName, Client: c.client, ClientCA: c.keys, CRI: cfg.CRI, Pods: c.engine.Pods, Watch: agent.Changes(c.engine), Streams: cfg.Streams,
		Stats: figures, Probes: c.engine.ProbeCounts, Clock: cfg.Clock, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	cert := c.keys.NodeServing(cfg.NodeName, pki.Hosts(append([]string{cfg.NodeName}, ecfg.Node.HostIPs...)...)...)
	c.group.Go(func() error { return c.engine.Run(ctx) })
	c.group.Go(func() error { return keeper.Run(ctx) })
	c.group.Go(func() error { return object.Run(ctx) })
	if down != nil {
		c.group.Go(func() error { return poke(ctx, object, down.Changed()) })
	}
	c.group.Go(func() error { return a.Run(ctx) })
	c.group.Go(func() error { return serveKubelet(ctx, server.Handler(), cert, listener, cfg.Log) })
	return a.Ready(), nil
}

// engineConfig completes the engine's by what the machine and the API are.
func (c *Cluster) engineConfig(api *objects.Source) (e engine.Config, err error) {
	e = c.cfg.Engine
	if e.Node, err = machine.Describe(c.cfg.Root); err != nil {
		return e, err
	}
	e.CRI, e.NodeName, e.Clock, e.Logger = c.cfg.CRI, c.cfg.NodeName, c.cfg.Clock, c.cfg.Log
	e.Dir = cmp.Or(e.Dir, filepath.Join(c.cfg.Root, "pods"))
	e.LogDir = cmp.Or(e.LogDir, filepath.Join(c.cfg.Root, "logs"))
	e.Services = api.Services
	// A manifest's pods see what is in manifests and nothing of the API, as
	// kubelet's see none at all: who may write objects must not reach them.
	e.ObjectsOf = func(from engine.Origin) engine.Objects {
		if _, ok := from.Manifests(); ok {
			return c.cfg.Static
		}
		return api
	}
	e.Volumes.Token, e.Volumes.Claim = api.Token, api.Claim
	classes := c.api.Informers().Node().V1().RuntimeClasses().Lister()
	e.RuntimeHandler = func(name string) (string, error) {
		class, err := classes.Get(name)
		if err != nil {
			return "", err
		}
		return class.Handler, nil
	}
	return e, nil
}

// poke has the Node object looked at when what it tells has changed.
func poke(ctx context.Context, object *register.Node, changed <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			object.Poke()
		}
	}
}

func hostAddresses(ips []string) (all []netip.Addr) {
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// serveKubelet answers on the listener until ctx ends, and closes it.
func serveKubelet(ctx context.Context, handler http.Handler, cert *pki.Certificate, l net.Listener, log *slog.Logger) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.GetCertificate, ClientAuth: tls.RequestClientCert},
	}
	failed := make(chan error, 1)
	// An exit code comes last, and the API's proxy is in between.
	go func() { failed <- server.ServeTLS(linger.Listen(l), "", "") }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Streams have no end of their own.
	err := server.Close()
	if serr := <-failed; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
