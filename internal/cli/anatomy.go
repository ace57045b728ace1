package cli

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"unipod.dev/unipod/internal/anatomy/local"
)

func newAnatomy(g *global) *cobra.Command {
	var recipe bool
	var format string
	cmd := &cobra.Command{
		Use:   "anatomy POD",
		Short: "Show what a running pod is made of",
		Long: `Show what a running pod is made of: the pause process and the containers under
it, the namespaces of each and which of them are shared, mounts and where they
come from, control groups and their use now, addresses and the host's end of
the cable.

POD is a name, namespace/name, a UID, or the beginning of a sandbox ID. It
works beside a running play or serve: it reads records and /proc.`,
		Example: `  # the whole pod as a tree
  unipod anatomy web

  # and every system call that made its containers
  unipod anatomy web --recipe

  # the addresses, for a script
  unipod anatomy web -o json | jq -r '.network.addresses[]'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			pod, err := local.Read(g.run, args[0])
			if err != nil {
				return err
			}
			if !recipe && format != "" {
				pod.Recipe = ""
				for i := range pod.Containers {
					pod.Containers[i].Recipe = ""
				}
			}
			return write(cmd.OutOrStdout(), format, pod, func(w io.Writer) error {
				return pod.Tree(w, time.Now(), recipe)
			})
		},
	}
	cmd.Flags().BoolVar(&recipe, "recipe", false, "print the system calls that made each container")
	outputFlag(cmd, &format)
	return cmd
}
