package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"unipod.dev/unipod/internal/version"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  unipod version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "unipod %s %s/%s %s\n", version.Version, runtime.GOOS, runtime.GOARCH, runtime.Version())
			return err
		},
	}
}
