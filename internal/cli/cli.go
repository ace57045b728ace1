// Package cli is unipod's command line: commands, flags, tables and exit
// codes. It decides nothing about pods; each command turns its arguments into
// calls of the floors below and their answers into text.
//
// It promises that standard output holds only what was asked for (so that it
// can be piped), that everything else goes to standard error, and that the
// exit code says how it went; see [Main].
//
// Floor: 11, over everything but the main function.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"early.unipod.dev/heap"
	"github.com/spf13/cobra"

	"unipod.dev/unipod/internal/kubectl"
	"unipod.dev/unipod/internal/node"
)

// Exit codes besides those of containers.
const (
	exitFailure = 1 // it was tried and failed
	exitUsage   = 2 // arguments or manifests are wrong; nothing was tried
)

// A codeError ends the program with its code; a nil err says nothing more.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// Main runs the command line and returns the exit code: 0 when it went well,
// 2 when the arguments or manifests are wrong, else 1, or what the command
// documents (play and exec return the code of a container, and 128 plus the
// signal's number when a signal ended them).
func Main(args []string) int {
	root := newRoot()
	if len(args) > 1 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) && kubectl.Has(args[1]) {
		kubectl.Run(kubectl.Config{Args: args, Run: env("UNIPOD_RUN", node.DefaultRun)})
		return 0
	}
	root.SetArgs(verbFirst(args))
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	var code *codeError
	if !errors.As(err, &code) {
		code = &codeError{exitFailure, err}
	}
	if code.err != nil {
		printError(root.ErrOrStderr(), code.err)
	}
	return code.code
}

// printError prints each of several joined errors on a line of its own.
func printError(w io.Writer, err error) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && err.Error() == errors.Join(joined.Unwrap()...).Error() {
		for _, e := range joined.Unwrap() {
			printError(w, e)
		}
		return
	}
	fmt.Fprintf(w, "error: %s\n", err)
}

// global are the flags of every command.
type global struct {
	root, run string
	endpoint  string // of another runtime, for the commands that have the flag
	debug     bool
}

func newRoot() *cobra.Command {
	g := &global{}
	cmd := &cobra.Command{
		Use:   "unipod",
		Short: "Run Kubernetes Pods on one Linux machine",
		Long: `unipod runs Kubernetes Pods on one Linux machine, without a cluster.

  unipod play web.yaml         run a manifest until its pods end or Ctrl-C
  unipod serve                 be the node: pods outlive the commands
  unipod status                how the node is
  unipod get pods              any of kubectl's commands, on this node
  unipod anatomy web           show what a running pod is made of

Commands of kubectl are upstream's own. They mean this machine's node, whatever
$KUBECONFIG says, unless --kubeconfig, --context, --cluster or --server name
another; ` + "`unipod kubectl`" + ` is kubectl as it is.

Exit codes: 0 it went well; 1 it failed; 2 the arguments or manifests are
wrong, and nothing was done. play and exec return a container's own code,
kubectl's commands kubectl's.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			g.logging(cmd.ErrOrStderr(), slog.LevelWarn)
			if name := cmd.Name(); name != "serve" && name != "play" { // those have yet to start
				heap.Started()
			}
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&g.root, "root", env("UNIPOD_ROOT", node.DefaultRoot), "directory of what survives a reboot: images, volumes, logs ($UNIPOD_ROOT)")
	f.StringVar(&g.run, "run", env("UNIPOD_RUN", node.DefaultRun), "directory of what doesn't: records and sockets ($UNIPOD_RUN)")
	f.BoolVar(&g.debug, "debug", false, "log what the node does, to standard error")
	// A command of kubectl parses its own flags; ours may stand before it.
	cmd.Flags().AddFlagSet(f)
	cmd.TraverseChildren = true
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usage("%w (--help explains)", err)
	})
	cobra.EnableCommandSorting = false // their order is part of what the help says
	cmd.CompletionOptions.HiddenDefaultCmd = true
	for _, group := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"pods", "Run pods", []*cobra.Command{newPlay(g), newServe(g)}},
		{"seen", "Look at what runs", []*cobra.Command{newPs(g), newAnatomy(g)}},
		{"node", "The node", []*cobra.Command{
			newStatus(g), newKubeconfig(g), newImage(g), newBackup(g), newRestore(g), newRotateKeys(g), newBench(g), newVersion(), newUninstall(g),
		}},
	} {
		cmd.AddGroup(&cobra.Group{ID: group.id, Title: group.title + ":"})
		for _, c := range group.commands {
			c.GroupID = group.id
			cmd.AddCommand(c)
		}
	}
	addKubectl(cmd, g)
	for _, c := range append(commands(cmd), cmd) {
		c.Args = usageArgs(c.Args)
	}
	return cmd
}

// commands are all commands below cmd.
func commands(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, c := range cmd.Commands() {
		all = append(append(all, c), commands(c)...)
	}
	return all
}

// usageArgs makes a wrong number of arguments an error of usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	if check == nil {
		check = cobra.NoArgs
	}
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage("%s: %w\nusage: %s", cmd.CommandPath(), err, cmd.UseLine())
		}
		return nil
	}
}

// endpointFlag adds --runtime-endpoint to a command.
func (g *global) endpointFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.endpoint, "runtime-endpoint", "", "run pods on another container runtime, by its CRI socket (unix:///run/containerd/containerd.sock)")
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// logging sets where the node's own log goes, and from which level on; all of
// it when that was asked for.
func (g *global) logging(w io.Writer, level slog.Level) {
	if g.debug {
		level = slog.LevelDebug
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})))
}

// interruptible is a context that ends with the first SIGINT or SIGTERM; a
// second ends the program.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop()
	}()
	return ctx, stop
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("unipod makes namespaces, mounts and control groups: run it as root")
	}
	return nil
}
