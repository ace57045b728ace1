package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/backup"
	"unipod.dev/unipod/internal/cluster"
	"unipod.dev/unipod/internal/machine"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/store"
	"unipod.dev/unipod/internal/version"
)

func newBackup(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Write the API's objects and the node's keys into a file",
		Long: `Write the API's objects and the node's keys into a file: all that is needed to
have the same cluster again, on this machine or another. The node may run or not;
while it runs, the objects are those of one moment. Images, volumes and logs are
not in it.

The file has the keys: who has it can read every Secret and may do everything.
It is made readable by its owner only.`,
		Example: `  unipod backup /var/backups/unipod-$(date +%F).zip
  unipod backup - | ssh other 'umask 077; cat > unipod.zip'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			if args[0] == "-" {
				return g.backup(ctx, cmd.OutOrStdout())
			}
			return wholeFile(args[0], func(w io.Writer) error { return g.backup(ctx, w) })
		},
	}
}

// backup asks the running node, or reads what a stopped one left.
func (g *global) backup(ctx context.Context, w io.Writer) (err error) {
	unlock, err := node.Lock(g.root)
	var locked *node.LockedError
	if errors.As(err, &locked) {
		n, err := node.Connect(ctx, g.nodeConfig())
		if err != nil {
			return err
		}
		defer n.Close(ctx)
		return n.Backup(ctx, w)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if _, err := os.Stat(filepath.Join(g.root, backup.Objects)); err != nil {
		return fmt.Errorf("there is no API below %s to back up: %w", g.root, err)
	}
	objects, err := store.Open(store.Config{Dir: filepath.Join(g.root, backup.Objects)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, objects.Close()) }()
	return writeBackup(w, g.root, objects)
}

// writeBackup writes a backup of what is below root.
func writeBackup(w io.Writer, root string, objects *store.Store) error {
	name, err := machine.Name()
	if err != nil {
		return err
	}
	return backup.Write(w, root, objects, backup.About{Time: time.Now().UTC().Truncate(time.Second), Node: name, Unipod: version.Version})
}

// backups lets other processes ask this one's node for backups.
func backups(n *node.Node, c *cluster.Cluster, root string, memory bool) {
	if !memory {
		n.HandleBackup(func(_ context.Context, w io.Writer) error { return writeBackup(w, root, c.Store()) })
	}
}

// wholeFile writes a file that appears when it is whole, readable by its owner
// only.
func wholeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), os.Rename(f.Name(), path)); err != nil {
		return err
	}
	return f.Close()
}

func newRestore(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup in the place of the API's objects and the node's keys",
		Long: `Put a backup in the place of the API's objects and the node's keys. The node must
not run; when it is started again, it ends pods that the backup doesn't know and
starts those it does. The backup is read and checked as a whole before anything
is changed.

Clients notice nothing but other objects: kubeconfigs and tokens of the time of
the backup are valid again, later ones aren't.`,
		Example: `  systemctl stop unipod && unipod restore /var/backups/unipod.zip && systemctl start unipod`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := needRoot(); err != nil {
				return err
			}
			if err := os.MkdirAll(g.root, 0o700); err != nil {
				return err
			}
			unlock, err := node.Lock(g.root)
			if err != nil {
				return fmt.Errorf("the node must be stopped to restore: %w", err)
			}
			defer func() { err = errors.Join(err, unlock()) }()
			about, err := backup.Restore(args[0], g.root, clock.RealClock{})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "restored what node %s had at %s\n", about.Node, about.Time.Format(time.RFC3339))
			if host, herr := machine.Name(); herr == nil && host != about.Node {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: this machine is called %s; pods bound to node %s are made anew by their controllers, others are removed\n", host, about.Node)
			}
			return nil
		},
	}
}
