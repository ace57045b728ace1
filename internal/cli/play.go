package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"early.unipod.dev/heap"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"unipod.dev/unipod/internal/cluster"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/klogs"
	"unipod.dev/unipod/internal/manifest"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/play"
	"unipod.dev/unipod/internal/progress"
	"unipod.dev/unipod/internal/timeline"
)

type playFlags struct {
	noColour, quiet, retry bool
	since, output, node    string
}

func newPlay(g *global) *cobra.Command {
	var f playFlags
	cmd := &cobra.Command{
		Use:   "play FILE|DIR|-...",
		Short: "Run manifests in the foreground",
		Long: `Run manifests in the foreground: make their objects, pull images, start pods,
show what the containers say, and end when they end.

Manifests are YAML or JSON with objects of any kind the Kubernetes API knows,
from files, directories (*.yaml, *.yml, *.json) or standard input ("-"). The API
checks all of them first; when anything is wrong with any of them, every error
is listed with its file, line and field, and nothing is started. They are made
in the order they need each other, whatever order they are written in. The pods
of Deployments, Jobs and other controllers, custom ones included, are shown like
Pods.

The running node is used (unipod serve, or another play); where none runs, one
is started for as long as the play lasts, with its API in memory. The other
commands (unipod get, logs, exec, …) work beside it. --node always and never
insist on one or the other.

Pods and Jobs end by themselves, and the play with them. Others run until
Ctrl-C, which removes what the play has made: pods end gracefully, each within
its terminationGracePeriodSeconds; a second Ctrl-C kills them. Nothing of them
is left behind. What was there before isn't touched: an object that exists is
an error.

When they have ended, a timeline of each pod's life is the summary (not with
--quiet); --output makes it what the command prints.

A pod that can't start (its image can't be pulled, a volume is missing, a port
is taken) ends the play; --retry keeps trying instead, as kubelet does.

Exit codes:
  0    all pods succeeded (restartPolicy Never or OnFailure; a Job's once it is complete)
  1    a pod couldn't start, or failed for no container's reason
  2    the arguments or manifests are wrong; nothing was started
  130  ended by Ctrl-C (143: by SIGTERM)
  N    the code of the container that failed first`,
		Example: `  # a pod, until Ctrl-C
  unipod play pod.yaml

  # everything in a directory; only what the containers say
  unipod play -q ./manifests/

  # what happened to it, in order, for a program
  unipod play -o json pod.yaml | jq '.[0].entries'

  # a job: its exit code is the container's
  kubectl get pod job -o yaml | unipod play -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.play(cmd, args, f)
		},
	}
	cmd.Flags().BoolVar(&f.noColour, "no-color", false, "no colours ($NO_COLOR)")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show only what the containers say")
	cmd.Flags().StringVar(&f.since, "since", "", "leave out log lines before a time (RFC 3339) or older than a duration (10s)")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "print the pods' timelines when they have ended, and all else to standard error: timeline, json or yaml")
	g.endpointFlag(cmd)
	cmd.Flags().StringVar(&f.node, "node", "auto", "use the running node: auto (if there is one), always or never")
	cmd.Flags().BoolVar(&f.retry, "retry", false, "keep trying with pods that can't start, as kubelet does")
	return cmd
}

func (g *global) play(cmd *cobra.Command, paths []string, f playFlags) error {
	since, err := parseSince(f.since, time.Now())
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"auto", "always", "never"}, f.node) {
		return usage("--node %q: auto, always and never are the choices", f.node)
	}
	set, err := manifest.Read(paths, cmd.InOrStdin())
	if err != nil {
		return &codeError{exitUsage, err}
	}
	out := os.Stdout
	switch f.output {
	case "":
	case "timeline", "json", "yaml": // standard output is for what was asked for
		out = os.Stderr
	default:
		return usage("--output %q: timeline, json and yaml are the formats there are", f.output)
	}
	if !play.Plays(set.Objects) {
		return usage("%s: nothing in it that pods come of, nothing to play", strings.Join(paths, ", "))
	}
	screen := progress.NewScreen(out, os.Stderr, f.noColour)
	defer screen.Close()
	// What the node logs goes between the pods' lines, not into them.
	g.logging(screenWriter{screen}, slog.LevelError)
	if !g.debug {
		slog.SetDefault(slog.New(notOfPods{slog.Default().Handler()}))
	}
	klogs.Install(slog.Default())
	for _, w := range set.Warnings {
		screen.Say("warning: %s", w)
	}
	// From here on signals end pods, not the program.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	var lives []timeline.Timeline
	code, err := g.playSet(cmd.Context(), set, f.node, play.Config{
		Screen: screen, Quiet: f.quiet, Since: since, Retry: f.retry, Signals: signals,
		Finished: func(all []timeline.Timeline) { lives = all },
	})
	err = errors.Join(err, tellLives(cmd.OutOrStdout(), screen, f, lives))
	if code == 0 && err == nil {
		return nil
	}
	if code == 0 {
		code = exitFailure
	}
	return &codeError{code, err}
}

// tellLives prints the pods' timelines: as what the command is for when that
// was asked for, else as a summary beside the containers' output.
func tellLives(w io.Writer, screen *progress.Screen, f playFlags, lives []timeline.Timeline) error {
	switch {
	case f.output == "timeline":
		colour := !f.noColour && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(os.Stdout.Fd()))
		for i := range lives {
			if err := lives[i].Write(w, colour); err != nil {
				return err
			}
		}
		return nil
	case f.output != "":
		return write(w, f.output, lives, nil)
	case f.quiet:
		return nil
	}
	for i := range lives {
		var text strings.Builder
		if err := lives[i].Write(&text, screen.Colour); err != nil {
			return err
		}
		for line := range strings.Lines(text.String()) {
			screen.Say("%s", strings.TrimSuffix(line, "\n"))
		}
	}
	return nil
}

// screenWriter writes lines to a screen.
type screenWriter struct{ *progress.Screen }

func (w screenWriter) Write(b []byte) (int, error) {
	w.Say("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// notOfPods leaves out what is logged about pods: their events say it in
// better words.
type notOfPods struct{ slog.Handler }

func aboutPod(a slog.Attr) bool { return a.Key == "pod" }

func (h notOfPods) Handle(ctx context.Context, r slog.Record) error {
	about := false
	r.Attrs(func(a slog.Attr) bool {
		about = aboutPod(a)
		return !about
	})
	if about {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h notOfPods) WithAttrs(attrs []slog.Attr) slog.Handler {
	if slices.ContainsFunc(attrs, aboutPod) {
		return slog.DiscardHandler
	}
	return notOfPods{h.Handler.WithAttrs(attrs)}
}

func (h notOfPods) WithGroup(name string) slog.Handler { return notOfPods{h.Handler.WithGroup(name)} }

// playSet plays on the running node or on one of its own.
func (g *global) playSet(ctx context.Context, set *manifest.Set, where string, cfg play.Config) (code int, err error) {
	n, own, err := g.playNode(ctx, where)
	if err != nil {
		return exitFailure, err
	}
	defer func() { err = errors.Join(err, n.Close(ctx)) }()
	claim, err := play.NewClaim(g.root)
	if err != nil {
		return exitFailure, err
	}
	defer func() { err = errors.Join(err, claim.Release(ctx)) }()
	api := play.APIConfig{Name: claim.Name(), Objects: set.Objects, Note: func(p manifest.Place, text string) { cfg.Screen.Say("note: %s: %s", p, text) }}
	if own {
		c, err := g.playCluster(ctx, n, claim, cfg)
		if err != nil {
			return exitFailure, err
		}
		defer func() {
			err = errors.Join(err, waitForOthers(ctx, claim, cfg), c.Close(), claim.EndPods(ctx, n.CRI()))
		}()
		api.Client, cfg.LogDir, cfg.OwnLogs = c.API().Loopback(), claim.LogDir(), true
	} else {
		heap.Started() // there is no node to start, and a play may go on for long
		if api.Client, err = g.runningAPI(ctx); err != nil {
			return exitFailure, err
		}
		if cfg.LogDir, err = play.HostLogs(g.root); err != nil {
			return exitFailure, err
		}
		cfg.LogDir = cmp.Or(cfg.LogDir, filepath.Join(g.root, "logs"))
		// The objects outlive this process: whoever comes after it must know.
		api.Journal = claim.Journal
		if err := play.Sweep(ctx, g.root, n.CRI(), api.Client); err != nil {
			return exitFailure, err
		}
	}
	world, err := play.NewAPI(api)
	if err != nil {
		return exitFailure, err
	}
	if err := world.Check(ctx); err != nil {
		return exitUsage, err
	}
	cfg.World = world
	cfg.Runners, cfg.Pods = world.Runners(set.Objects)
	return play.Run(ctx, cfg)
}

// playNode is the node that --node asks for, and whether it is our own.
func (g *global) playNode(ctx context.Context, where string) (n *node.Node, own bool, err error) {
	if where == "always" {
		n, err = g.connectNode(ctx)
		return n, false, err
	}
	if err := needRoot(); err != nil {
		return nil, false, err
	}
	n, err = node.Open(ctx, g.nodeConfig())
	var locked *node.LockedError
	if where == "auto" && errors.As(err, &locked) {
		n, err = node.Connect(ctx, g.nodeConfig())
		return n, false, err
	}
	return n, true, err
}

// playCluster is an API of the play's own, in memory, on its own node.
func (g *global) playCluster(ctx context.Context, n *node.Node, claim *play.Claim, cfg play.Config) (*cluster.Cluster, error) {
	if err := play.Sweep(ctx, g.root, n.CRI(), nil); err != nil {
		return nil, err
	}
	keep, err := play.Others(ctx, n.CRI())
	if err != nil {
		return nil, err
	}
	if err := claim.Host(); err != nil {
		return nil, err
	}
	service := claim.Marked(n.CRI())
	if !cfg.Quiet && !n.Foreign() {
		service = &pullsShown{Service: service, images: n.Images(), screen: cfg.Screen}
	}
	// Any port: a play comes and goes, and shares the machine with others.
	return cluster.Start(ctx, cluster.Config{
		CRI: service, Streams: n.Streams(), Root: g.root, Run: g.run, Memory: true, Keep: keep,
		API: []string{"127.0.0.1:0"}, Kubelet: "127.0.0.1:0", Pods: podSide(n),
		Engine: engine.Config{Dir: claim.PodsDir(), LogDir: claim.LogDir(), KeepLogs: true},
	})
}

// startPatience is how long a node that another process has just started has
// until its API answers.
const startPatience = 10 * time.Second

// runningAPI is the running node's API.
func (g *global) runningAPI(ctx context.Context) (*rest.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		client, err := clientcmd.BuildConfigFromFlags("", filepath.Join(g.run, cluster.KubeconfigName))
		if err == nil {
			if err = answers(ctx, client); err == nil {
				return client, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the node in %s has no Kubernetes API (unipod serve --only cri has none): %w", g.run, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answers asks an API whether it is ready.
func answers(ctx context.Context, client *rest.Config) error {
	d, err := discovery.NewDiscoveryClientForConfig(client)
	if err != nil {
		return err
	}
	return d.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// waitForOthers keeps this process's node for the plays that use it; a signal
// leaves them alone.
func waitForOthers(ctx context.Context, claim *play.Claim, cfg play.Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-ctx.Done():
		case <-cfg.Signals:
			stop()
		}
	}()
	return claim.Others(ctx, func() {
		cfg.Screen.Say("Another play uses this node: staying until it ends (Ctrl-C leaves it alone)")
	})
}

// parseSince reads --since: a time or how long ago it was.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, usage("--since %q: neither a duration such as 10s nor a time such as %s", s, fmt.Sprint(now.UTC().Format(time.RFC3339)))
}
