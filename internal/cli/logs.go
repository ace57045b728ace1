package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/logview"
	"unipod.dev/unipod/internal/progress"
)

// fromGRPC gives an answer of a runtime its kind back.
func fromGRPC(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

func newLogs(g *global) *cobra.Command {
	var container, since string
	var follow, noColour bool
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Print what the containers of a pod have said",
		Long: `Print what the containers of a pod have said: of all, with their names before
each line, or of one (-c) as it wrote it.`,
		Example: `  unipod logs web
  unipod logs web -c nginx -f --since 10m`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			n, err := g.connectNode(ctx)
			if err != nil {
				return err
			}
			defer n.Close(ctx)
			pods, err := readPods(ctx, n.CRI())
			if err != nil {
				return err
			}
			pod, err := findPod(pods, args[0])
			if err != nil {
				return err
			}
			if container != "" {
				if _, err := pod.container(container); err != nil {
					return err
				}
			}
			screen := progress.NewScreen(os.Stdout, os.Stderr, noColour)
			return printLogs(ctx, n.CRI(), pod, container, follow, from, screen)
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "only this container")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is written, until the pod ends or Ctrl-C")
	cmd.Flags().StringVar(&since, "since", "", "leave out lines before a time (RFC 3339) or older than a duration (10m)")
	cmd.Flags().BoolVar(&noColour, "no-color", false, "no colours ($NO_COLOR)")
	return cmd
}

// printLogs prints a pod's logs, of one container or all.
func printLogs(ctx context.Context, service cri.Runtime, pod *podView, container string, follow bool, since time.Time, screen *progress.Screen) error {
	dir, err := logDir(ctx, service, pod)
	if err != nil {
		return err
	}
	opts := logview.Options{Since: since}
	width := 0
	for _, c := range pod.Containers {
		width = max(width, len(c.Name))
	}
	if container != "" {
		opts.Wanted = func(name string) bool { return name == container }
	}
	f, err := logview.Follow(dir, opts)
	if err != nil {
		return err
	}
	defer f.Close()
	each := func(l logview.Line) error {
		prefix := ""
		if container == "" {
			prefix = fmt.Sprintf("%-*s | ", width, l.Container)
		}
		screen.Out(prefix, l.Text)
		return nil
	}
	if !follow {
		return f.Drain(each)
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()
		waitForEnd(following, service, pod.SandboxID)
	}()
	return f.Run(following, each)
}

// logDir is the directory of a pod's logs: that of any of its containers'.
func logDir(ctx context.Context, service cri.Runtime, pod *podView) (string, error) {
	for _, c := range pod.Containers {
		status, err := service.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
		if errdefs.IsNotFound(fromGRPC(err)) {
			continue
		}
		if err != nil {
			return "", err
		}
		if path := status.GetStatus().GetLogPath(); path != "" {
			return filepath.Dir(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("pod %s has no logs yet: %w", pod.Name, errdefs.ErrNotFound)
}

// waitForEnd returns when the sandbox is no longer ready, the runtime is gone
// or ctx ends.
func waitForEnd(ctx context.Context, service cri.Runtime, id string) {
	over := errors.New("the pod has ended")
	check := func() error {
		status, err := service.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil || status.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			return over
		}
		return nil
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	// Whatever ends the watching, nothing is left to wait for.
	_ = service.ContainerEvents(watching, func() {
		if check() != nil {
			stop()
		}
	}, func(ev *runtimeapi.ContainerEventResponse) error {
		if ev.GetPodSandboxStatus().GetId() == id || ev.GetContainerId() == id {
			return check()
		}
		return nil
	})
}
