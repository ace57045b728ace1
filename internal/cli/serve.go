package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"early.unipod.dev/heap"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"unipod.dev/unipod/internal/backup"
	"unipod.dev/unipod/internal/cluster"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/klogs"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/play"
	"unipod.dev/unipod/internal/static"
)

type serveFlags struct {
	cluster                                  clusterFlags
	manifestsURL, manifestsCA                string
	manifestsHeader                          []string
	only, manifests, bridge, ipv4, ipv6, cni string
	cgroupDriver, cgroupParent               string
	streamAddress, streamCert, streamKey     string
	upkeep                                   upkeepFlags
}

func newServe(g *global) *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Be the node: pods outlive the commands, and this process",
		Long: `Be the node until a signal ends it: serve the Kubernetes API on https, with the
controllers and the scheduler behind it; run the pods it has, and those of a
directory of manifests (what kubelet calls static pods); serve the CRI on
cri.sock in --run, for kubelet, crictl and the other commands.

kubectl and unipod's own commands find the API by the kubeconfig in --run, which
is the administrator's; on the default root it is in /etc/unipod/kubeconfig too.

Pods don't notice when this process ends, is killed or upgraded: their parent is
pause, and the next unipod serve adopts them.`,
		Example: `  # a node for whatever is in /etc/unipod/manifests
  unipod serve

  # the same, with containerd as the runtime
  unipod serve --runtime-endpoint unix:///run/containerd/containerd.sock

  # reachable from other machines (pods reach it without)
  unipod serve --api-address 127.0.0.1:6443 --api-address 192.0.2.7:6443

  # a container runtime for kubelet, and nothing else
  unipod serve --only cri
  kubelet --container-runtime-endpoint=unix:///run/unipod/cri.sock`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.only != "" && f.only != "cri" {
				return usage("--only %q: cri is what can be served alone", f.only)
			}
			if err := onlyOurs(cmd, g.endpoint); err != nil {
				return err
			}
			for _, flag := range []string{"manifests", "manifests-url", "api-address", "kubelet-address", "service-cidr", "ephemeral", "node-labels"} {
				if f.only == "cri" && cmd.Flags().Changed(flag) {
					return usage("--%s needs the API and the pod engine, which --only cri leaves out", flag)
				}
			}
			return g.serve(cmd, f)
		},
	}
	g.endpointFlag(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.only, "only", "", "serve a part alone: cri")
	fl.StringVar(&f.manifests, "manifests", "/etc/unipod/manifests", "directory of the pods to keep running")
	fl.StringVar(&f.manifestsURL, "manifests-url", "", "URL of more pods to keep running, asked every 20 s")
	fl.StringSliceVar(&f.manifestsHeader, "manifests-url-header", nil, "headers of those requests (Authorization:Bearer …); they may be repeated")
	fl.StringVar(&f.manifestsCA, "manifests-url-ca", "", "certificates (PEM) that vouch for the URL's server (default: the machine's)")
	fl.StringVar(&f.bridge, "bridge", "", "name of the pods' bridge (default unipod0)")
	fl.StringVar(&f.ipv4, "ipv4", "", "the pods' IPv4 network (default 10.66.0.0/16)")
	fl.StringVar(&f.ipv6, "ipv6", "", "the pods' IPv6 network (default fd75:6e69:706f:64::/64)")
	fl.StringVar(&f.cni, "cni", "", "leave the network to the CNI configuration in this directory")
	fl.StringVar(&f.cgroupDriver, "cgroup-driver", "", "cgroupfs or systemd (default: as the machine is managed)")
	fl.StringVar(&f.cgroupParent, "cgroup-parent", "", "control group of pods that name none")
	fl.StringVar(&f.streamAddress, "stream-address", "", "address that exec, attach and port-forward are served on (default 127.0.0.1, any port)")
	fl.StringVar(&f.streamCert, "stream-tls-cert", "", "certificate (PEM) to serve them with over TLS")
	fl.StringVar(&f.streamKey, "stream-tls-key", "", "and its key")
	f.upkeep.add(fl)
	f.cluster.add(fl)
	return cmd
}

// onlyOurs refuses flags about a runtime that isn't ours.
func onlyOurs(cmd *cobra.Command, endpoint string) error {
	if endpoint == "" {
		return nil
	}
	for _, name := range []string{"only", "bridge", "ipv4", "ipv6", "cni", "cgroup-driver", "cgroup-parent", "stream-address", "stream-tls-cert", "stream-tls-key"} {
		if cmd.Flags().Changed(name) {
			return usage("--%s is about unipod's own runtime, which --runtime-endpoint leaves out", name)
		}
	}
	return nil
}

func (g *global) serve(cmd *cobra.Command, f serveFlags) (err error) {
	if err := needRoot(); err != nil {
		return err
	}
	pressure, images, err := f.upkeep.policies()
	if err != nil {
		return err
	}
	periods, err := f.upkeep.periods()
	if err != nil {
		return err
	}
	remote, err := f.remote()
	if err != nil {
		return err
	}
	g.logging(cmd.ErrOrStderr(), slog.LevelInfo) // a node's log is its face
	klogs.Install(slog.Default())                // before anything logs by it
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	cfg := g.nodeConfig()
	cfg.Bridge, cfg.IPv4, cfg.IPv6, cfg.CNI = f.bridge, f.ipv4, f.ipv6, f.cni
	cfg.CgroupDriver, cfg.CgroupParent = f.cgroupDriver, f.cgroupParent
	cfg.StreamAddr, cfg.StreamCert, cfg.StreamKey = f.streamAddress, f.streamCert, f.streamKey
	n, err := node.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close(context.WithoutCancel(ctx))) }()
	if err := play.Sweep(ctx, g.root, n.CRI(), nil); err != nil {
		slog.Warn("cleaning up after killed plays", "error", err)
	}
	if n.Foreign() {
		slog.Info("running pods on another runtime", "endpoint", g.endpoint)
	} else {
		slog.Info("serving the CRI", "socket", "unix://"+filepath.Join(n.Run(), node.SocketName))
	}
	if f.only == "cri" {
		heap.Started()
		tellSystemd(daemon.SdNotifyReady)
		<-ctx.Done()
		tellSystemd(daemon.SdNotifyStopping)
		slog.Info("ending; pods keep running")
		return nil
	}
	return g.serveCluster(ctx, n, f, remote, cluster.Config{
		Eviction: pressure, Images: images, Shutdown: periods, Engine: engine.Config{CgroupRoot: podGroups(f.cgroupParent)},
	})
}

// podGroups is the path of a control group that may be named as a slice: the
// engine makes its pods' groups there, where the runtime owns them.
func podGroups(parent string) string {
	if slice, ok := strings.CutSuffix(parent, ".slice"); ok {
		return "/" + strings.ReplaceAll(slice, "-", "/")
	}
	return parent
}

// serveCluster is the node with its API, until ctx ends.
func (g *global) serveCluster(ctx context.Context, n *node.Node, f serveFlags, remote static.URL, cfg cluster.Config) (err error) {
	if err := f.cluster.complete(&cfg, g); err != nil {
		return err
	}
	directory, url, loaded := make(chan struct{}), make(chan struct{}), make(chan struct{})
	if err := backup.Check(g.root); err != nil && !cfg.Memory {
		return err
	}
	cfg.Pods = podSide(n)
	cfg.CRI, cfg.Streams, cfg.Static, cfg.StaticLoaded = n.CRI(), n.Streams(), &static.Objects{}, loaded
	c, err := cluster.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := play.Sweep(ctx, g.root, n.CRI(), c.API().Loopback()); err != nil {
		slog.Warn("cleaning up after killed plays", "error", err)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case <-c.Done():
			return c.Err()
		case <-gctx.Done():
			return nil
		}
	})
	group.Go(func() error {
		return static.Run(gctx, static.Config{Dir: f.manifests, Engine: c.Engine(), Objects: cfg.Static, Runtime: n.CRI(), Loaded: directory})
	})
	if remote.Address != "" {
		group.Go(func() error {
			return static.Run(gctx, static.Config{URL: remote, Engine: c.Engine(), Objects: cfg.Static, Runtime: n.CRI(), Loaded: url})
		})
	} else {
		close(url)
	}
	group.Go(func() error {
		for _, source := range []chan struct{}{directory, url} {
			select {
			case <-source:
			case <-gctx.Done():
				return nil
			}
		}
		close(loaded)
		return nil
	})
	group.Go(func() error {
		for ev := range c.Engine().Watch(gctx) {
			logEvent(ev)
		}
		return nil
	})
	backups(n, c, g.root, cfg.Memory)
	tellSystemd(daemon.SdNotifyReady)
	slog.Info("serving the Kubernetes API", "server", c.Server(), "kubeconfig", filepath.Join(n.Run(), cluster.KubeconfigName), "manifests", f.manifests)
	err = group.Wait()
	tellSystemd(daemon.SdNotifyStopping)
	slog.Info("ending; pods keep running")
	return err
}

// podSide is how a node's pods reach this machine.
func podSide(n *node.Node) (p cluster.PodSide) {
	p.Link, p.Gateways, p.Prepare = n.PodSide()
	return p
}

// tellSystemd tells how far the service is, where systemd started it.
func tellSystemd(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		slog.Warn("telling systemd", "state", state, "error", err)
	}
}

// logEvent puts what the engine records into the node's log.
func logEvent(ev engine.Event) {
	if ev.Type != engine.Recorded || ev.Record == nil {
		return
	}
	attrs := []any{"pod", fmt.Sprintf("%s/%s", ev.Pod.Namespace, ev.Pod.Name), "reason", ev.Record.Reason}
	if ev.Record.Container != "" {
		attrs = append(attrs, "container", ev.Record.Container)
	}
	text := strings.TrimSpace(ev.Record.Message)
	if ev.Record.Type == "Warning" {
		slog.Warn(text, attrs...)
		return
	}
	slog.Info(text, attrs...)
}

// remote is the source of pods that the flags of the URL name.
func (f *serveFlags) remote() (static.URL, error) {
	u := static.URL{Address: f.manifestsURL, Header: http.Header{}}
	for _, h := range f.manifestsHeader {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return u, usage("--manifests-url-header: not of the form name:value") // the value may be secret
		}
		u.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	if f.manifestsCA == "" {
		return u, nil
	}
	var err error
	if u.CA, err = os.ReadFile(f.manifestsCA); err != nil {
		return u, fmt.Errorf("--manifests-url-ca: %w", err)
	}
	return u, nil
}
