package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/backup"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/pki"
)

func newRotateKeys(g *global) *cobra.Command {
	keys := map[string]func(*pki.Authority) error{
		"encryption":      (*pki.Authority).RotateEncryptionKey,
		"service-account": (*pki.Authority).RotateServiceAccountKey,
	}
	return &cobra.Command{
		Use:   "rotate-keys encryption|service-account...",
		Short: "Make new keys for Secrets at rest and service account tokens",
		Long: `Make new keys: for the encryption of Secrets at rest, and for the signatures of
service account tokens. The node must not run; when it is started again, what is
written and signed from then on is by the new keys, and what was before stays
valid. The node then encrypts all Secrets anew while it runs, and drops the old
key of encryption when none needs it any more.

Certificates need none of this: they are renewed by themselves, and so is the
authority that signs them, two years before its end.`,
		Example:   `  systemctl stop unipod && unipod rotate-keys encryption && systemctl start unipod`,
		Args:      cobra.MinimumNArgs(1),
		ValidArgs: []string{"encryption", "service-account"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			for _, name := range args {
				if keys[name] == nil {
					return usage("%q is no key: encryption and service-account are", name)
				}
			}
			if err := needRoot(); err != nil {
				return err
			}
			unlock, err := node.Lock(g.root)
			if err != nil {
				return fmt.Errorf("the node must be stopped to rotate keys: %w", err)
			}
			defer func() { err = errors.Join(err, unlock()) }()
			a, err := pki.Load(filepath.Join(g.root, backup.Keys), clock.RealClock{})
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := keys[name](a); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "new keys: %s\n", strings.Join(args, ", "))
			return err
		},
	}
}
