package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/bench"
	"unipod.dev/unipod/internal/node"
)

type benchFlags struct {
	opts     bench.Options
	endpoint string
	socket   string // of containerd
	alone    bool
	format   string
}

func newBench(g *global) *cobra.Command {
	f := benchFlags{opts: bench.Options{Pods: 50, Burst: 100, Parallel: 8, Hold: 200, Image: bench.ImageName, Pulls: 3}}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how fast pods are on this machine",
		Long: `Measure how fast pods start, are entered and end on this machine, beside the
floor (the bare system calls a pod can't do without, made in the same run) and
beside containerd and podman where they are installed.

unipod is measured twice: within this process, and through the socket of one in
a process of its own, as a kubelet meets it.

The pods run busybox, from an image made on the spot. They and the image are
removed again. With --endpoint the runtime behind any CRI socket is measured
instead of unipod. It pulls that image from this command, over http on the
loopback, unless --image names one that is there, with sleep and true in it.`,
		Example: `  unipod bench
  unipod bench --pods 200 --alone -o json > figures.json
  unipod bench --endpoint unix:///run/unipod/cri.sock
  unipod bench --endpoint /run/crio/crio.sock --image docker.io/library/busybox:1`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.opts.Pods < 1 || f.opts.Parallel < 1 || min(f.opts.Burst, f.opts.Hold, f.opts.Pulls) < 0 {
				return usage("--pods and --parallel must be at least 1, --burst, --hold and --pulls not negative")
			}
			return g.bench(cmd, f)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.opts.Pods, "pods", f.opts.Pods, "pods to start one after another")
	fl.IntVar(&f.opts.Burst, "burst", f.opts.Burst, "pods to start --parallel at a time; 0 for none")
	fl.IntVar(&f.opts.Parallel, "parallel", f.opts.Parallel, "pods to start at the same time")
	fl.IntVar(&f.opts.Hold, "hold", f.opts.Hold, "pods to hold for the memory figure; 0 for none")
	fl.IntVar(&f.opts.Pulls, "pulls", f.opts.Pulls, "times to pull an image of 4 layers and 160 MB; 0 for none")
	fl.StringVar(&f.socket, "containerd", bench.ContainerdSocket, "containerd's CRI socket")
	fl.StringVar(&f.endpoint, "endpoint", "", "measure the runtime behind this CRI socket")
	fl.StringVar(&f.opts.Image, "image", f.opts.Image, "image to run, with --endpoint; the default is pulled from this command")
	fl.BoolVar(&f.alone, "alone", false, "no peers, only unipod and the floor")
	outputFlag(cmd, &f.format)
	cmd.AddCommand(newBenchAPI(g))
	return cmd
}

func (g *global) bench(cmd *cobra.Command, f benchFlags) error {
	if err := needRoot(); err != nil {
		return err
	}
	g.logging(cmd.ErrOrStderr(), slog.LevelError)
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	say := func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
	report := &bench.Report{When: time.Now(), Machine: machineWords(), Options: f.opts}
	say("measuring the floor")
	var err error
	if report.Floor, err = bench.MeasureFloor(ctx, f.opts.Pods); err != nil {
		return err
	}
	archive, err := bench.BuildImage()
	if err != nil {
		return err
	}
	registry, err := bench.NewRegistry(f.opts.Pulls > 0)
	if err != nil {
		return err
	}
	defer registry.Close()
	f.opts.Pull = registry.Pull()
	var failed error
	for _, subject := range []struct {
		name string
		do   func() (*bench.Figures, error)
	}{
		{"unipod", func() (*bench.Figures, error) {
			if f.endpoint != "" {
				return benchEndpoint(ctx, registry, filepath.Base(f.endpoint), f.endpoint, f.opts)
			}
			return g.benchSelf(ctx, archive, f.opts)
		}},
		{socketName, func() (*bench.Figures, error) { return g.benchSocket(ctx, registry, f.opts) }},
		{"containerd", func() (*bench.Figures, error) { return bench.Containerd(ctx, f.socket, archive, f.opts) }},
		{"podman", func() (*bench.Figures, error) { return bench.Podman(ctx, archive, f.opts) }},
	} {
		ours := subject.name == "unipod" || subject.name == socketName
		if f.endpoint != "" && subject.name != "unipod" || f.alone && !ours {
			continue
		}
		say("measuring %s", subject.name)
		figures, err := subject.do()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", subject.name, err))
		}
		if figures == nil && err == nil {
			say("  not here")
		}
		if figures != nil {
			report.Runtimes = append(report.Runtimes, figures)
		}
	}
	return errors.Join(failed, write(cmd.OutOrStdout(), f.format, report, func(w io.Writer) error { return report.Table(w) }))
}

// socketName is the column of a unipod in a process of its own.
const socketName = "unipod, socket"

// benchEndpoint measures the runtime behind a socket.
func benchEndpoint(ctx context.Context, registry *bench.Registry, name, socket string, o bench.Options) (*bench.Figures, error) {
	pulled := o.Image == bench.ImageName
	if pulled {
		o.Image = registry.App()
	}
	return bench.Endpoint(ctx, name, socket, pulled, o)
}

// benchSocket measures a unipod in a process of its own; nil when a node runs
// already, which has been measured through its socket then.
func (g *global) benchSocket(ctx context.Context, registry *bench.Registry, o bench.Options) (_ *bench.Figures, err error) {
	n, err := node.Connect(ctx, g.nodeConfig())
	if err == nil {
		return nil, n.Close(ctx)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(g.run, node.SocketName)
	s, err := bench.Serve(ctx, socket, self, "--root", g.root, "--run", g.run, "serve", "--only", "cri")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return benchEndpoint(ctx, registry, socketName, socket, o)
}

// benchSelf measures unipod in this process, or the node that runs.
func (g *global) benchSelf(ctx context.Context, archive []byte, o bench.Options) (_ *bench.Figures, err error) {
	n, err := g.openNode(ctx)
	if err != nil {
		return nil, err
	}
	last := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, n.Close(last)) }()
	if _, err := n.Images().Load(ctx, bytes.NewReader(archive), "", nil); err != nil {
		return nil, err
	}
	defer func() {
		_, rerr := n.Images().Remove(last, bench.ImageName)
		err = errors.Join(err, rerr)
	}()
	s := bench.Subject{Name: "unipod", Service: n.CRI(), PID: os.Getpid()}
	if !n.InProcess() {
		remote, closer, err := bench.Dial(ctx, "unipod", filepath.Join(n.Run(), node.SocketName))
		if err != nil {
			return nil, err
		}
		defer closer()
		s = remote
	}
	return bench.Measure(ctx, s, o)
}

// machineWords names the machine by what matters to the figures.
func machineWords() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown machine"
	}
	return fmt.Sprintf("Linux %s %s, %d cores", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), runtime.NumCPU())
}
