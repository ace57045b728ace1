package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/service"
	"unipod.dev/unipod/internal/volume"
)

const (
	unitName = "unipod.service"
	// logindConfig is what lets a shutdown of the machine wait for pods.
	logindConfig = "/etc/systemd/logind.conf.d/99-unipod.conf"
	// endPatience is how long a running node has to end.
	endPatience = time.Minute
)

func newUninstall(g *global) *cobra.Command {
	var yes bool
	var bridge string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "End all pods and remove everything of unipod's from this machine",
		Long: `End all pods and remove everything of unipod's from this machine: the systemd
unit is stopped, disabled and removed, pods are stopped, and their mounts, network links,
nftables tables, control groups and the directories --root and --run are removed,
with all images, volumes, objects and keys in them.

What stays: the program itself (make uninstall removes it), manifests in /etc/unipod/manifests, and what pods wrote into hostPath volumes.`,
		Example: `  unipod backup /root/unipod.zip && unipod uninstall`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("End all pods and remove %s and %s with everything in them?", g.root, g.run)); err != nil {
					return err
				}
			}
			return g.uninstall(cmd.Context(), bridge, func(format string, args ...any) {
				fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	cmd.Flags().StringVar(&bridge, "bridge", "", "name of the pods' bridge, where serve was given one")
	return cmd
}

// confirm asks a question that only "yes" answers.
func confirm(in io.Reader, out io.Writer, question string) error {
	fmt.Fprintf(out, "%s Type yes: ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return usage("nothing was done (--yes doesn't ask)")
	}
	return nil
}

func (g *global) uninstall(ctx context.Context, bridge string, say func(string, ...any)) error {
	for _, dir := range []string{g.root, g.run} {
		if abs, err := filepath.Abs(dir); err != nil || filepath.Dir(abs) == abs {
			return usage("%s can't be a directory of unipod's", dir)
		}
	}
	if err := stopUnit(ctx, say); err != nil {
		return err
	}
	if err := g.stopNode(ctx, say); err != nil {
		return err
	}
	_, err := os.Stat(g.root)
	if err == nil {
		if err := g.endPods(ctx, bridge, say); err != nil {
			return fmt.Errorf("ending the pods: %w; nothing was removed", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := service.Remove(bridge); err != nil {
		return err
	}
	if err := unmountBelow(g.root, g.run); err != nil {
		return err
	}
	files := []string{g.run, g.root}
	if filepath.Clean(g.root) == node.DefaultRoot {
		files = append(files, etcKubeconfig, logindConfig)
	}
	for _, path := range files {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		say("removed %s", path)
	}
	return nil
}

// stopUnit stops and disables the systemd unit, where there is one.
func stopUnit(ctx context.Context, say func(string, ...any)) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil // not started by systemd
	}
	c, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("asking systemd: %w", err)
	}
	defer c.Close()
	units, err := c.ListUnitsByNamesContext(ctx, []string{unitName})
	if err != nil {
		return fmt.Errorf("asking systemd: %w", err)
	}
	if len(units) == 0 || units[0].LoadState != "loaded" {
		return nil
	}
	result := make(chan string, 1)
	if _, err := c.StopUnitContext(ctx, unitName, "replace", result); err != nil {
		return fmt.Errorf("stopping %s: %w", unitName, err)
	}
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("stopping %s: %s", unitName, r)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := c.DisableUnitFilesContext(ctx, []string{unitName}, false); err != nil {
		return fmt.Errorf("disabling %s: %w", unitName, err)
	}
	say("stopped and disabled %s", unitName)
	prop, err := c.GetUnitPropertyContext(ctx, unitName, "FragmentPath")
	if err != nil {
		return fmt.Errorf("asking systemd where %s is: %w", unitName, err)
	}
	path, _ := prop.Value.Value().(string)
	if filepath.Base(path) != unitName {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	say("removed %s", path)
	return c.ReloadContext(ctx)
}

// stopNode ends the node's process, when one runs.
func (g *global) stopNode(ctx context.Context, say func(string, ...any)) error {
	holder, err := node.Holder(g.root)
	if err != nil || holder == "" {
		return err
	}
	var pid int
	if _, err := fmt.Sscanf(holder, "PID %d:", &pid); err != nil || pid <= 1 {
		return fmt.Errorf("a node runs on %s, by %s: stop it first", g.root, holder)
	}
	say("stopping the node (%s)", holder)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("stopping the node (%s): %w", holder, err)
	}
	defer unix.Close(fd)
	// The lock is looked at again: the number may be another process's by now.
	if again, err := node.Holder(g.root); err != nil || again != holder {
		return errors.Join(err, fmt.Errorf("the node that ran on %s was replaced by another: try again", g.root))
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("stopping the node (%s): %w", holder, err)
	}
	deadline := time.Now().Add(endPatience)
	for {
		holder, err := node.Holder(g.root)
		if err != nil || holder == "" {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the node (%s) hasn't ended after %s", holder, endPatience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// endPods stops and removes every pod of the runtime, and with the last its
// network.
func (g *global) endPods(ctx context.Context, bridge string, say func(string, ...any)) (err error) {
	cfg := g.nodeConfig()
	cfg.Bridge = bridge
	n, err := node.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close(ctx)) }()
	list, err := n.CRI().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var all errgroup.Group
	all.SetLimit(8)
	for _, s := range list.GetItems() {
		all.Go(func() error { return endSandbox(ctx, n.CRI(), s) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if len(list.GetItems()) > 0 {
		say("ended %d pods", len(list.GetItems()))
	}
	dirs, err := filepath.Glob(filepath.Join(g.root, "play", "*", "pods"))
	if err != nil {
		return err
	}
	for _, dir := range append(dirs, filepath.Join(g.root, "pods")) {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		m, err := volume.New(volume.Config{Dir: dir})
		if err != nil {
			return err
		}
		if err := m.CleanOrphans(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

func endSandbox(ctx context.Context, runtime cri.Runtime, s *runtimeapi.PodSandbox) error {
	_, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id})
	if err == nil {
		_, err = runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
	}
	if err != nil {
		return fmt.Errorf("pod %s/%s: %w", s.GetMetadata().GetNamespace(), s.GetMetadata().GetName(), err)
	}
	return nil
}

// unmountBelow unmounts what is mounted below directories, the last first:
// removing them must never reach into what is another's.
func unmountBelow(dirs ...string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescape(f[4])
		if slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(point, filepath.Clean(d)+"/") }) {
			points = append(points, point)
		}
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", point, err)
		}
	}
	return nil
}

// unescape undoes what the kernel does to blanks in its tables.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
