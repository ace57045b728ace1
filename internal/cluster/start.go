package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"early.unipod.dev/heap"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/kubelet/client"

	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/controllers"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/scheduler"
	"unipod.dev/unipod/internal/store"
	"unipod.dev/unipod/internal/volume"
)

// Start puts a cluster together and waits until it is ready. It ends with ctx,
// and must be closed in any case. What upstream logs goes where klogs.Install
// sends it; that is the caller's to do, before anything in the process logs.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, done: make(chan struct{})}
	running, stop := context.WithCancelCause(ctx)
	c.stop = stop
	c.group, running = errgroup.WithContext(running)
	defer func() {
		if err != nil {
			stop(err)
			err = errors.Join(err, ignoreCanceled(c.group.Wait()))
			close(c.done)
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.openState(); err != nil {
		return nil, err
	}
	listeners, err := listen("the API", cfg.API)
	if err != nil {
		return nil, err
	}
	c.server = "https://" + reachable(listeners[0].Addr()).String()
	kubelet, err := listen("kubelet's API", []string{cfg.Kubelet})
	if err != nil {
		shut(listeners)
		return nil, err
	}
	if err := c.startAPI(running, listeners, reachable(kubelet[0].Addr())); err != nil {
		shut(kubelet)
		return nil, err
	}
	services, err := c.newServices()
	if err == nil {
		err = c.startDeciders(running)
	}
	if err != nil {
		shut(kubelet)
		return nil, err
	}
	ready, err := c.startNode(running, kubelet[0])
	if err != nil {
		return nil, err
	}
	if err := c.api.Wait(running); err != nil {
		return nil, fmt.Errorf("starting the API: %w", err)
	}
	select {
	case <-ready:
	case <-running.Done():
		return nil, fmt.Errorf("starting the node: %w", context.Cause(running))
	}
	if err := c.writeKubeconfigs(); err != nil {
		return nil, err
	}
	heap.Started()
	c.runServices(running, services)
	c.group.Go(func() error {
		return c.keys.Run(running, func() {
			if err := c.writeKubeconfigs(); err != nil {
				cfg.Log.Error("the renewed kubeconfig", "err", err)
			}
			if _, _, err := c.keys.SigningFiles(c.signing()); err != nil {
				cfg.Log.Error("the renewed authority isn't what certificates are signed with", "err", err)
			}
		})
	})
	c.group.Go(func() error { return c.settle(running) })
	go func() {
		c.err = ignoreCanceled(c.group.Wait())
		stop(errClosed)
		close(c.done)
	}()
	return c, nil
}

// ignoreCanceled leaves out that a part ended because it was told to.
func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, errClosed) {
		return nil
	}
	return err
}

// openState opens what is durable.
func (c *Cluster) openState() (err error) {
	keys, objects := filepath.Join(c.cfg.Root, "pki"), filepath.Join(c.cfg.Root, "api")
	if c.cfg.Memory {
		keys, objects = "", ""
	}
	if c.store, err = store.Open(store.Config{Dir: objects, Log: c.cfg.Log, Clock: c.cfg.Clock}); err != nil {
		return err
	}
	c.close = append(c.close, c.store.Close)
	// Secrets without their key are lost: a new one would only hide that.
	if c.store.Empty() {
		c.keys, err = pki.Open(keys, c.cfg.Clock)
	} else {
		c.keys, err = pki.Load(keys, c.cfg.Clock)
	}
	if err == nil {
		c.admin = c.keys.Admin()
	}
	return err
}

// startAPI starts the API and answers on the listeners.
func (c *Cluster) startAPI(ctx context.Context, listeners []net.Listener, kubelet netip.AddrPort) (err error) {
	advertise, own, err := c.podEndpoint(listeners)
	if err != nil {
		shut(listeners)
		return err
	}
	if own != nil {
		listeners = append(listeners, own)
	}
	c.kubelets, err = newKubelets(c.keys, c.cfg.NodeName, kubelet, client.NodeGetterFunc(func(ctx context.Context, name string, o metav1.GetOptions) (*v1.Node, error) {
		return c.client.CoreV1().Nodes().Get(ctx, name, o) // nobody asks before it is there
	}))
	if err != nil {
		shut(listeners)
		return err
	}
	c.api, err = apiserver.New(ctx, apiserver.Config{
		Store: c.store, PKI: c.keys, Advertise: advertise, ServiceCIDRs: c.cfg.Services,
		Kubelet: c.kubelets, Metrics: &c.usage,
		AuditPolicy: c.cfg.AuditPolicy, AuditLog: c.cfg.AuditLog, Log: c.cfg.Log,
	})
	if err != nil {
		shut(listeners)
		return err
	}
	c.close = append(c.close, func() error { c.api.Close(); return nil })
	mine := c.api.Loopback()
	mine.QPS = -1 // it is a call of a function
	if c.client, err = kubernetes.NewForConfig(mine); err != nil {
		shut(listeners)
		return err
	}
	names := []string{c.cfg.NodeName}
	for _, l := range listeners {
		names = append(names, reachable(l.Addr()).Addr().String())
	}
	if own == nil && advertise.IsValid() {
		names = append(names, advertise.Addr().String())
	}
	for _, n := range c.cfg.Services {
		names = append(names, first(n).String()) // the Service kubernetes
	}
	cert := c.keys.Serving("kube-apiserver", pki.Hosts(names...)...)
	for _, l := range listeners {
		c.group.Go(func() error { return c.api.Serve(ctx, l, cert.GetCertificate) })
	}
	return nil
}

// startDeciders starts what watches the API and acts through it.
func (c *Cluster) startDeciders(ctx context.Context) error {
	// Of one that was killed, what it was writing too.
	if err := os.RemoveAll(c.signing()); err != nil {
		return fmt.Errorf("the signing keys of an earlier node: %w", err)
	}
	// Closed last to first, and after everything has ended: nobody reads them then.
	c.close = append(c.close, func() error { return os.RemoveAll(c.signing()) })
	cert, key, err := c.keys.SigningFiles(c.signing())
	if err != nil {
		return err
	}
	volumes := filepath.Join(c.cfg.Root, "volumes")
	if c.cfg.Memory {
		// The objects that name them have ended with the process that had them.
		volumes = filepath.Join(c.cfg.Root, "ephemeral-volumes")
		if err := removeEach(volumes); err != nil {
			return fmt.Errorf("volumes of an earlier node: %w", err)
		}
	}
	making := &sync.Mutex{}
	c.group.Go(func() error {
		return controllers.Run(ctx, controllers.Config{
			Client: c.api.Loopback(), Informers: c.api.Informers(), RootCA: c.keys,
			SigningCert: cert, SigningKey: key, AccountKey: c.keys.ServiceAccountKey(),
			Volumes: volumes, NodeName: c.cfg.NodeName, Making: making, Log: c.cfg.Log,
		})
	})
	c.group.Go(func() error {
		return scheduler.Run(ctx, scheduler.Config{Client: c.api.Loopback(), Informers: c.api.Informers(), Making: making, Log: c.cfg.Log})
	})
	return nil
}

// signing is where the certificate controller finds the keys it signs with.
func (c *Cluster) signing() string { return filepath.Join(c.cfg.Run, "signing") }

// removeEach removes the directories of volumes below one.
func removeEach(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, volume.RemoveTree(filepath.Join(dir, e.Name())))
	}
	return err
}

func (c *Cluster) kubeconfigs() []string {
	return append([]string{filepath.Join(c.cfg.Run, KubeconfigName)}, c.cfg.Kubeconfigs...)
}

// writeKubeconfigs writes the administrator's, everywhere.
func (c *Cluster) writeKubeconfigs() error {
	config, err := c.keys.Kubeconfig(c.server, c.admin)
	if err != nil {
		return err
	}
	for _, path := range c.kubeconfigs() {
		if err := pki.WriteKubeconfig(path, config); err != nil {
			return fmt.Errorf("the kubeconfig %s: %w", path, err)
		}
	}
	return nil
}
