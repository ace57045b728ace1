package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"unipod.dev/unipod/internal/cluster"
	"unipod.dev/unipod/internal/kubectl"
	"unipod.dev/unipod/internal/pki"
)

func newKubeconfig(g *global) *cobra.Command {
	var merge bool
	var file string
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the node's kubeconfig, or merge it into yours",
		Long: `Print the administrator's kubeconfig of the running node, for kubectl, helm and
other clients. Who has it may do everything.

With --merge it goes into ~/.kube/config (or --file) as the context "unipod",
beside what is there; the file stays readable by its owner only, and the current
context stays what it is when there is one. Under sudo the file is that of the
user who called it.

The certificate in it is valid for a year: merge again after a renewal. The
node's own copy, which unipod's commands use, is always current.`,
		Example: `  sudo unipod kubeconfig --merge && kubectl --context unipod get pods
  unipod kubeconfig > node.kubeconfig`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := os.ReadFile(filepath.Join(g.run, cluster.KubeconfigName))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return kubectl.NoNode(g.run)
			case errors.Is(err, fs.ErrPermission):
				return errors.New("the node's kubeconfig is for root: run this as root")
			case err != nil:
				return err
			}
			if !merge {
				if cmd.Flags().Changed("file") {
					return usage("--file needs --merge; without it the kubeconfig is printed")
				}
				_, err := cmd.OutOrStdout().Write(text)
				return err
			}
			ours, err := clientcmd.Load(text)
			if err != nil {
				return fmt.Errorf("the node's kubeconfig: %w", err)
			}
			var path string
			var current bool
			err = asCaller(func(home string) (err error) {
				path = file
				if path == "" {
					path = filepath.Join(home, ".kube", "config")
				}
				current, err = mergeKubeconfig(path, ours)
				return err
			})
			if err != nil {
				return err
			}
			hint := "it is the current context"
			if !current {
				hint = "kubectl --context " + pki.ContextName + " uses it, kubectl config use-context " + pki.ContextName + " makes it the current one"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "context %s is in %s: %s\n", pki.ContextName, path, hint)
			return nil
		},
	}
	cmd.Flags().BoolVar(&merge, "merge", false, "merge it into ~/.kube/config")
	cmd.Flags().StringVar(&file, "file", "", "merge it into this file instead")
	return cmd
}

// asCaller calls do as the user who called sudo, where that is how we became
// root: the kernel checks what may be read and written, and files are theirs.
func asCaller(do func(home string) error) error {
	uid, uerr := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, gerr := strconv.Atoi(os.Getenv("SUDO_GID"))
	if os.Geteuid() != 0 || uerr != nil || gerr != nil || uid == 0 {
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		return do(home)
	}
	home, err := homeOf(uid)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// The thread ends with this goroutine: it is never unlocked.
		runtime.LockOSThread()
		if err := errors.Join(setFSGroups(gid), unix.Setfsuid(uid)); err != nil {
			done <- err
			return
		}
		done <- do(home)
	}()
	return <-done
}

// setFSGroups leaves root's groups behind, in this thread only.
func setFSGroups(gid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("leaving root's groups: %w", errno)
	}
	return unix.Setfsgid(gid)
}

// mergeKubeconfig puts our context into the kubeconfig at path, and tells
// whether it is the current one.
func mergeKubeconfig(path string, ours *clientcmdapi.Config) (current bool, err error) {
	theirs, err := clientcmd.LoadFromFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		theirs = clientcmdapi.NewConfig()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return false, err
		}
	case err != nil:
		return false, fmt.Errorf("%s is left as it is: %w", path, err)
	}
	maps.Copy(theirs.Clusters, ours.Clusters)
	maps.Copy(theirs.AuthInfos, ours.AuthInfos)
	for name, c := range ours.Contexts {
		if old := theirs.Contexts[name]; old != nil { // the namespace is their choice
			c.Namespace = old.Namespace
		}
		theirs.Contexts[name] = c
	}
	if theirs.CurrentContext == "" {
		theirs.CurrentContext = ours.CurrentContext
	}
	return theirs.CurrentContext == ours.CurrentContext, pki.WriteKubeconfig(path, theirs)
}
