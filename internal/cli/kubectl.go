package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"unipod.dev/unipod/internal/kubectl"
)

// addKubectl adds kubectl's commands, without building them: each parses its
// own arguments when it is run.
func addKubectl(root *cobra.Command, g *global) {
	for _, group := range kubectl.Verbs() {
		root.AddGroup(&cobra.Group{ID: group.ID, Title: group.Title + ":"})
		for _, v := range group.Verbs {
			if slices.ContainsFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == v.Name }) {
				continue
			}
			root.AddCommand(kubectlCommand(&cobra.Command{Use: v.Name, Short: v.Short, GroupID: group.ID}, func(args []string) kubectl.Config {
				return kubectl.Config{Args: append([]string{v.Name}, args...), Run: g.run}
			}))
		}
	}
	// kubectl's help points to it.
	root.AddCommand(kubectlCommand(&cobra.Command{Use: "options", Short: "Print the flags that all of kubectl's commands have", Hidden: true}, func(args []string) kubectl.Config {
		return kubectl.Config{Args: append([]string{"options"}, args...), Run: g.run}
	}))
	all := kubectlCommand(&cobra.Command{
		Use:     "kubectl",
		Short:   "All of kubectl, plugins and $KUBECONFIG included",
		Long:    "Run kubectl as it is, on $KUBECONFIG or else on this machine's node.",
		Example: "  unipod kubectl version\n  KUBECONFIG=~/.kube/config unipod kubectl config get-contexts",
	}, func(args []string) kubectl.Config { return kubectl.Config{Args: args, Run: g.run, Plain: true} })
	all.GroupID = "cluster"
	root.AddCommand(all)
}

// kubectlCommand completes a command that hands its arguments on.
func kubectlCommand(c *cobra.Command, config func(args []string) kubectl.Config) *cobra.Command {
	c.DisableFlagParsing = true
	c.Args = cobra.ArbitraryArgs
	c.PersistentPreRun = func(*cobra.Command, []string) {} // kubectl logs by its own -v
	c.RunE = func(_ *cobra.Command, args []string) error {
		kubectl.Run(config(args))
		return nil
	}
	c.SetHelpFunc(func(*cobra.Command, []string) { kubectl.Run(config([]string{"--help"})) })
	return c
}

// switches are kubectl's flags without a value that may stand before a command.
var switches = []string{"--insecure-skip-tls-verify", "--match-server-version", "--warnings-as-errors", "--disable-compression", "-h", "--help"}

// verbFirst moves flags of kubectl's that stand before one of its commands
// behind it, where they mean the same: `-n shop get pods`. Ours stay.
func verbFirst(args []string) []string {
	var ours, theirs []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		name, _, whole := strings.Cut(arg, "=")
		switch {
		case !strings.HasPrefix(arg, "-"):
			if len(theirs) == 0 || !kubectl.Has(arg) {
				return args
			}
			return slices.Concat(ours, []string{arg}, theirs, args[i+1:])
		case arg == "--":
			return args
		case name == "--debug":
			ours = append(ours, arg)
			continue
		}
		n := 1
		if short := !strings.HasPrefix(arg, "--"); !whole && !slices.Contains(switches, arg) && (!short || len(arg) == 2) {
			n = 2 // its value follows
		}
		take := args[i:min(i+n, len(args))]
		if name == "--root" || name == "--run" {
			ours = append(ours, take...)
		} else {
			theirs = append(theirs, take...)
		}
		i += n - 1
	}
	return args
}
