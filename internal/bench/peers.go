package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
)

// ContainerdSocket is where containerd usually serves the CRI.
const ContainerdSocket = "/run/containerd/containerd.sock"

// Dial makes a subject of a CRI socket ("unix:///path" or "/path"). The caller
// closes it.
func Dial(ctx context.Context, name, socket string) (Subject, func() error, error) {
	socket = strings.TrimPrefix(socket, "unix://")
	service, closer, err := cri.Dial(ctx, socket)
	if err != nil {
		return Subject{}, nil, err
	}
	return Subject{Name: name, Service: service, PID: peerOf(socket)}, closer.Close, nil
}

// peerOf is the process that listens on a socket, 0 when the kernel doesn't
// tell.
func peerOf(socket string) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return 0
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// Endpoint measures the runtime behind any CRI socket. It pulls the image first
// when that is a registry's of this bench, and then removes it again.
func Endpoint(ctx context.Context, name, socket string, pulled bool, o Options) (_ *Figures, err error) {
	s, closer, err := Dial(ctx, name, socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closer()) }()
	if pulled {
		spec := &runtimeapi.ImageSpec{Image: o.Image}
		if _, err := s.Service.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
			return nil, fmt.Errorf("pulling the bench's image (--image names one that is there): %w", err)
		}
		defer func() {
			_, rerr := s.Service.RemoveImage(context.WithoutCancel(ctx), &runtimeapi.RemoveImageRequest{Image: spec})
			err = errors.Join(err, rerr)
		}()
	}
	return Measure(ctx, s, o)
}

// A Server is a unipod in a process of its own, as kubelet has it beside it.
type Server struct {
	cmd    *exec.Cmd
	log    bytes.Buffer
	ended  chan struct{}
	Socket string
}

// Serve starts program with args, which serves the CRI on socket, and waits
// for it to listen.
func Serve(ctx context.Context, socket, program string, args ...string) (*Server, error) {
	s := &Server{cmd: exec.Command(program, args...), ended: make(chan struct{}), Socket: socket}
	s.cmd.Stderr = &s.log
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the runtime in a process of its own: %w", err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // Close reads ProcessState
	}()
	for {
		if peerOf(socket) == s.cmd.Process.Pid {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.Close())
		case <-s.ended:
			return nil, fmt.Errorf("the runtime in a process of its own ended (%s): %s", s.cmd.ProcessState, strings.TrimSpace(s.log.String()))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Close ends the process and waits for it.
func (s *Server) Close() error {
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.ended
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("the runtime in a process of its own: %s: %s", s.cmd.ProcessState, strings.TrimSpace(s.log.String()))
	}
	return nil
}

// Containerd measures the containerd of this machine through its CRI; nil
// when there is none.
func Containerd(ctx context.Context, socket string, archive []byte, o Options) (*Figures, error) {
	if _, err := os.Stat(socket); err != nil {
		return nil, nil
	}
	if out, err := run(ctx, archive, "ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "-"); err != nil {
		return nil, fmt.Errorf("loading the image into containerd: %w: %s", err, out)
	}
	s, closer, err := Dial(ctx, "containerd", socket)
	if err != nil {
		return nil, err
	}
	defer closer()
	f, err := Measure(ctx, s, o)
	_, rerr := run(context.WithoutCancel(ctx), nil, "ctr", "--address", socket, "--namespace", "k8s.io", "images", "rm", o.Image)
	return f, errors.Join(err, rerr)
}

// Podman measures the podman of this machine by its command line, which has
// no phases: a pod with one container is started, entered and removed. It is
// nil when there is none.
func Podman(ctx context.Context, archive []byte, o Options) (_ *Figures, err error) {
	if _, err := exec.LookPath("podman"); err != nil {
		return nil, nil
	}
	f := &Figures{Name: "podman"}
	if out, err := run(ctx, nil, "podman", "--version"); err == nil {
		f.Version = strings.TrimSpace(out)
	}
	if out, err := run(ctx, archive, "podman", "load", "-q"); err != nil {
		return nil, fmt.Errorf("loading the image into podman: %w: %s", err, out)
	}
	last := context.WithoutCancel(ctx)
	defer func() {
		_, rerr := run(last, nil, "podman", "rmi", "-f", o.Image)
		err = errors.Join(err, rerr)
	}()
	var starts, execs, stops []time.Duration
	for i := -1; i < o.Pods; i++ {
		name := fmt.Sprintf("%s-%d", Namespace, i+1)
		start, err := timed(ctx, append([]string{"podman", "run", "-d", "--pod", "new:" + name, "--name", name + "-c", o.Image}, appCommand...)...)
		if err == nil {
			var enter time.Duration
			enter, err = timed(ctx, "podman", "exec", name+"-c", "true")
			execs = append(execs, enter)
		}
		stop, serr := timed(last, "podman", "pod", "rm", "-f", "-t", "0", name)
		if err = errors.Join(err, serr); err != nil {
			return nil, err
		}
		starts, stops = append(starts, start), append(stops, stop)
	}
	// The first made what all share.
	f.PodStart, f.Exec, f.Stop = TimesOf(starts[1:]), TimesOf(execs[1:]), TimesOf(stops[1:])
	f.Pull, err = measurePull(o.Pulls, func() error {
		_, err := timed(ctx, "podman", "pull", "-q", "--tls-verify=false", o.Pull)
		return err
	}, func() error {
		_, err := timed(last, "podman", "rmi", "-f", o.Pull)
		return err
	})
	return f, err
}

func timed(ctx context.Context, args ...string) (time.Duration, error) {
	at := time.Now()
	out, err := run(ctx, nil, args...)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(args[:2], " "), err, out)
	}
	return time.Since(at), nil
}

// run runs a peer's command and returns what it says.
func run(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
