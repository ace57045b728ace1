package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	kubernetes "k8s.io/component-base/version"

	"unipod.dev/unipod/internal/version"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version, and that of the Kubernetes inside",
		Example: "  unipod version\n  unipod kubectl version   # and the running node's",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "unipod %s %s/%s %s, Kubernetes %s\n",
				version.Version, runtime.GOOS, runtime.GOARCH, runtime.Version(), kubernetes.Get().GitVersion)
			return err
		},
	}
}
