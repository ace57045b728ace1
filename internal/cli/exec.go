package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
)

func newExec(g *global) *cobra.Command {
	var container string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec POD [-c CONTAINER] [-it] -- COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container, beside what runs there. The exit code is
the command's.`,
		Example: `  unipod exec web -- cat /etc/hosts
  unipod exec -it web -c nginx -- sh`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if tty && !stdin {
				return usage("-t needs -i: a terminal without input is none")
			}
			if tty && !term.IsTerminal(int(os.Stdin.Fd())) {
				return usage("-t needs a terminal as standard input")
			}
			ctx := cmd.Context()
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
			c, err := pod.container(container)
			if err != nil {
				return err
			}
			return execIn(ctx, n.CRI(), &runtimeapi.ExecRequest{
				ContainerId: c.ID, Cmd: args[1:], Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty,
			})
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "the container, where the pod has several")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "with a terminal")
	cmd.Flags().SetInterspersed(true)
	return cmd
}

// execIn carries an exec out over the runtime's streaming server.
func execIn(ctx context.Context, service cri.Runtime, req *runtimeapi.ExecRequest) error {
	answer, err := service.Exec(ctx, req)
	if err != nil {
		return err
	}
	u, err := url.Parse(answer.GetUrl())
	if err != nil {
		return fmt.Errorf("the runtime's streaming address: %w", err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	if err != nil {
		return err
	}
	opts := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: req.Tty}
	if req.Stdin {
		opts.Stdin = os.Stdin
	}
	if req.Stderr {
		opts.Stderr = os.Stderr
	}
	if req.Tty {
		restore, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return err
		}
		defer term.Restore(int(os.Stdin.Fd()), restore)
		sizes := newSizes()
		defer sizes.stop()
		opts.TerminalSizeQueue = sizes
	}
	err = executor.StreamWithContext(ctx, opts)
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return &codeError{exit.Code, nil}
	}
	return err
}

// sizes tells the sizes of our terminal: now, and when it changes.
type sizes struct {
	changed chan os.Signal
	done    chan struct{}
}

func newSizes() *sizes {
	s := &sizes{changed: make(chan os.Signal, 1), done: make(chan struct{})}
	signal.Notify(s.changed, syscall.SIGWINCH)
	s.changed <- syscall.SIGWINCH
	return s
}

// Next implements remotecommand.TerminalSizeQueue.
func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.done:
		return nil
	case <-s.changed:
	}
	w, h, err := term.GetSize(int(os.Stdin.Fd()))
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}
}

func (s *sizes) stop() {
	signal.Stop(s.changed)
	close(s.done)
}
