package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/machine"
	"unipod.dev/unipod/internal/manifest"
	"unipod.dev/unipod/internal/play"
	"unipod.dev/unipod/internal/progress"
	"unipod.dev/unipod/internal/timeline"
)

type playFlags struct {
	noColour, quiet, retry bool
	since, output          string
}

func newPlay(g *global) *cobra.Command {
	var f playFlags
	cmd := &cobra.Command{
		Use:   "play FILE|DIR|-...",
		Short: "Run the pods of manifests in the foreground",
		Long: `Run the pods of manifests in the foreground: pull their images, start them, show
what their containers say, and end when they end.

Manifests are YAML or JSON with any number of Pods, ConfigMaps and Secrets, from
files, directories (*.yaml, *.yml, *.json) or standard input ("-"). They are
checked as the API server checks them; when anything is wrong with any of them,
every error is listed and nothing is started.

Ctrl-C ends the pods gracefully, each within its terminationGracePeriodSeconds;
a second Ctrl-C kills them. Nothing of them is left behind.

When they have ended, a timeline of each pod's life is the summary (not with
--quiet); --output makes it what the command prints.

A pod that can't start (its image can't be pulled, a volume is missing, a port
is taken) ends the play; --retry keeps trying instead, as kubelet does.

Exit codes:
  0    all pods succeeded (restartPolicy Never or OnFailure)
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
	cmd.Flags().BoolVar(&f.retry, "retry", false, "keep trying with pods that can't start, as kubelet does")
	return cmd
}

func (g *global) play(cmd *cobra.Command, paths []string, f playFlags) error {
	since, err := parseSince(f.since, time.Now())
	if err != nil {
		return err
	}
	objects, err := manifest.Load(paths, cmd.InOrStdin())
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
	if len(objects.Pods) == 0 {
		return usage("%s: no Pod in it, nothing to play", strings.Join(paths, ", "))
	}
	screen := progress.NewScreen(out, os.Stderr, f.noColour)
	defer screen.Close()
	// What the node logs goes between the pods' lines, not into them.
	g.logging(screenWriter{screen}, slog.LevelError)
	if !g.debug {
		slog.SetDefault(slog.New(notOfPods{slog.Default().Handler()}))
	}
	for _, w := range objects.Warnings {
		screen.Say("warning: %s", w)
	}
	// From here on signals end pods, not the program.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	var lives []timeline.Timeline
	code, err := g.playObjects(cmd.Context(), objects, play.Config{
		Pods: objects.Pods, Screen: screen, Quiet: f.quiet, Since: since, Retry: f.retry, Signals: signals,
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

// playObjects plays on the running node or on one of its own.
func (g *global) playObjects(ctx context.Context, objects *manifest.Objects, cfg play.Config) (code int, err error) {
	n, err := g.openNode(ctx)
	if err != nil {
		return exitFailure, err
	}
	defer func() { err = errors.Join(err, n.Close(ctx)) }()
	if err := play.Sweep(ctx, g.root, n.CRI()); err != nil {
		return exitFailure, err
	}
	claim, err := play.NewClaim(g.root)
	if err != nil {
		return exitFailure, err
	}
	defer func() { err = errors.Join(err, claim.Release(ctx)) }()
	for _, pod := range objects.Pods {
		claim.Mark(pod)
	}
	service := n.CRI()
	if !cfg.Quiet && !n.Foreign() {
		service = &pullsShown{Service: service, images: n.Images(), screen: cfg.Screen}
	}
	ecfg := engine.Config{Dir: claim.PodsDir(), LogDir: claim.LogDir(), KeepLogs: true, Objects: objectSource{objects}}
	e, err := newEngine(service, g.root, ecfg)
	if err != nil {
		return exitFailure, err
	}
	limits, err := newLimitKeeper(service, e, ecfg)
	if err != nil {
		return exitFailure, err
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- e.Run(running) }()
	go func() { done <- limits.Run(running) }()
	cfg.Engine, cfg.LogDir = e, claim.LogDir()
	code, err = play.Run(ctx, cfg)
	stop()
	err = errors.Join(err, <-done, <-done)
	if n.InProcess() {
		err = errors.Join(err, waitForOthers(ctx, claim, cfg))
	}
	return code, err
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

// newEngine completes cfg by what the machine is.
func newEngine(service cri.Service, root string, cfg engine.Config) (*engine.Engine, error) {
	var err error
	if cfg.NodeName, err = machine.Name(); err != nil {
		return nil, err
	}
	if cfg.Node, err = machine.Describe(root); err != nil {
		return nil, err
	}
	cfg.CRI = service
	return engine.New(cfg)
}

// objectSource gives the engine the ConfigMaps and Secrets of the manifests.
type objectSource struct{ *manifest.Objects }

func (o objectSource) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	if m, ok := o.ConfigMaps[types.NamespacedName{Namespace: namespace, Name: name}]; ok {
		return m, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
}

func (o objectSource) Secret(namespace, name string) (*v1.Secret, error) {
	if s, ok := o.Secrets[types.NamespacedName{Namespace: namespace, Name: name}]; ok {
		return s, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
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
