package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
)

// maxSyncOutput caps each stream of ExecSync in bytes, as containerd: more is
// read, so that the process goes on, and thrown away.
const maxSyncOutput = 16 << 20

// execProcess is a process being executed in a running container.
type execProcess struct {
	pid  int
	fd   *os.File // pidfd
	io   *containerIO
	exit <-chan pause.Exit // closed without a value when the pod dies
}

func (p *execProcess) close() {
	p.fd.Close()
	p.io.closeFiles()
}

// wait returns the exit code, or ctx's error.
func (p *execProcess) wait(ctx context.Context) (int32, error) {
	select {
	case e, ok := <-p.exit:
		if !ok {
			return killedExitCode, nil
		}
		return exitCode(e.Status), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// exec starts cmd in the container.
func (r *Runtime) exec(ctx context.Context, c *container, cmd []string, tty, stdin bool) (_ *execProcess, err error) {
	if len(cmd) == 0 || strings.ContainsRune(strings.Join(cmd, ""), 0) {
		return nil, invalid("exec needs a command without NUL bytes")
	}
	if st := c.state(); st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %q is in %s state: %w", c.id, st, errdefs.ErrFailedPrecondition)
	}
	conn, err := c.sandbox.live()
	if err != nil {
		return nil, err
	}
	var open closers
	defer func() { open.close() }()
	pidfd, pts, err := c.dupHandles()
	if err != nil {
		return nil, err
	}
	open.add(pidfd.Close)
	if pts != nil {
		open.add(pts.Close)
	}
	spec := recipe.ExecSpec{PIDFD: pidfd, Namespaces: unix.CLONE_NEWNS, UserNS: c.sandbox.userNS()}
	if r.cfg.Cgroups.PrivateNamespace(c.config.GetLinux().GetSecurityContext().GetPrivileged()) {
		spec.Namespaces |= unix.CLONE_NEWCGROUP
	}
	if spec.Process, err = r.process(c, cmd); err != nil {
		return nil, err
	}
	spec.SELinuxLabel = c.record().ProcessLabel
	place, err := openPlace(c.group, c.sandbox.userNS())
	if err != nil {
		return nil, fmt.Errorf("cgroup of the container: %w", err)
	}
	open.add(func() error { place.close(); return nil })
	spec.CgroupProcs = place.procs
	if tty {
		spec.Env = append(spec.Env, "TERM=xterm")
	}
	cio, err := c.streams(&spec.Process, pts, tty, stdin, &open)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			cio.closeFiles()
		}
	}()
	rcp, err := recipe.Exec(spec)
	if err != nil {
		return nil, err
	}
	id := newID()[:32]
	exits := make(chan pause.Exit, 1)
	c.sandbox.mu.Lock()
	c.sandbox.execs[id] = exits
	c.sandbox.mu.Unlock()
	proc, err := conn.Spawn(ctx, pause.SpawnRequest{ID: id, PIDNamespace: pidfd, Cgroup: place.dir, Recipe: rcp})
	if err != nil {
		c.sandbox.mu.Lock()
		delete(c.sandbox.execs, id)
		c.sandbox.mu.Unlock()
		return nil, err
	}
	return &execProcess{pid: proc.PID, fd: proc.Pidfd, io: cio, exit: exits}, nil
}

// dupHandles returns descriptors of its own of the container's first process
// and its devpts (nil where the container has none of ours).
func (c *container) dupHandles() (pidfd, pts *os.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd == nil {
		return nil, nil, fmt.Errorf("container %q has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if pidfd, err = dup(c.pidfd); err != nil || c.pts == nil {
		return pidfd, nil, err
	}
	if pts, err = dup(c.pts); err != nil {
		pidfd.Close()
	}
	return pidfd, pts, err
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicating %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// ExecSync implements cri.Runtime.
func (r *Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (_ *runtimeapi.ExecSyncResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Timeout)*time.Second)
		defer cancel()
	}
	p, err := r.exec(ctx, c, req.Cmd, false, false)
	if err != nil {
		return nil, fmt.Errorf("failed to exec in container: %w", err)
	}
	defer p.close()
	var out, errOut capped
	var pumps sync.WaitGroup
	pumps.Go(func() { readChunks(p.io.stdout, out.take) })
	pumps.Go(func() { readChunks(p.io.stderr, errOut.take) })
	code, err := p.wait(ctx)
	if err != nil {
		killTree(p)
		p.close()
		pumps.Wait()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("failed to exec in container: timeout %ds exceeded: %w", req.Timeout, context.DeadlineExceeded)
		}
		return nil, err
	}
	// What the command left running may hold the pipes: its output so far is
	// the answer.
	drained := make(chan struct{})
	go func() { pumps.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(drainTime):
	case <-ctx.Done():
	}
	p.close()
	<-drained
	return &runtimeapi.ExecSyncResponse{Stdout: out.Bytes(), Stderr: errOut.Bytes(), ExitCode: code}, nil
}

// capped keeps the first maxSyncOutput bytes.
type capped struct{ bytes.Buffer }

func (b *capped) take(p []byte) error {
	if room := maxSyncOutput - b.Len(); len(p) > room {
		p = p[:room]
	}
	b.Write(p)
	return nil
}

// killTree kills a process and its descendants. Each is stopped before its
// children are read, so that none is forked behind our back.
func killTree(p *execProcess) {
	seen := map[int]bool{}
	var visit func(pid int)
	visit = func(pid int) {
		if seen[pid] {
			return
		}
		seen[pid] = true
		unix.Kill(pid, unix.SIGSTOP)
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, t := range tasks {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
			for f := range strings.FieldsSeq(string(b)) {
				if child, err := strconv.Atoi(f); err == nil {
					visit(child)
				}
			}
		}
	}
	// The process itself goes by its descriptor: its PID can't be another's
	// while it is stopped, nor its children's.
	if unix.PidfdSendSignal(int(p.fd.Fd()), unix.SIGSTOP, nil, 0) != nil {
		return
	}
	visit(p.pid)
	for pid := range seen {
		if pid != p.pid {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	unix.PidfdSendSignal(int(p.fd.Fd()), unix.SIGKILL, nil, 0)
}

// resizeTTY carries window sizes to the terminal until the channel closes or
// ctx ends.
func resizeTTY[T any](ctx context.Context, master *os.File, sizes <-chan T, dims func(T) (w, h uint16)) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			w, h := dims(s)
			if raw, err := master.SyscallConn(); err == nil {
				raw.Control(func(fd uintptr) {
					unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: h, Col: w})
				})
			}
		}
	}
}
