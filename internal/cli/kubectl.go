package cli

import (
	"slices"

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
