package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/fault"
	"unipod.dev/unipod/internal/security/selinux"
)

// Exit codes of containers that didn't end by themselves: containerd's.
const (
	killedExitCode  = 128 + int32(unix.SIGKILL)
	unknownExitCode = 255
	startErrorCode  = 128
)

// drainTime bounds how long an exit waits for the last of the output: all
// processes are dead, so the pipes end at once unless one was handed on.
const drainTime = 2 * time.Second

func exitCode(st unix.WaitStatus) int32 {
	if st.Signaled() {
		return 128 + int32(st.Signal())
	}
	return int32(st.ExitStatus())
}

// finish records the container's end: after what is left in its cgroup is
// killed (in a pod with one PID namespace its orphans live on) and its output
// is in the log.
func (c *container) finish(code int32, at time.Time) {
	c.op.Lock() // a start still at work has the say
	defer c.op.Unlock()
	if st := c.state(); st == runtimeapi.ContainerState_CONTAINER_EXITED {
		return
	}
	log := c.sandbox.r.log.With("pod", podName(c.sandbox), "uid", c.sandbox.config.Metadata.Uid, "container", c.config.Metadata.Name, "id", c.id)
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if !c.privatePID() {
		if err := c.group.Kill(ctx); err != nil {
			log.Warn("killing what the container left running", "error", err)
		}
	}
	c.mu.Lock()
	cio := c.io
	c.mu.Unlock()
	if cio != nil {
		cio.drain(ctx)
	}
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	if kills, err := c.group.OOMKills(); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("asking for out-of-memory kills", "error", err)
	} else if kills > 0 && code != 0 {
		reason = "OOMKilled"
	}
	fault.Point("finish.drained")
	err := c.update(func(rec *ContainerRecord) {
		if rec.StartedAt.IsZero() {
			rec.StartedAt = rec.CreatedAt
		}
		// Its start is recorded when the start's answer is under way, which a
		// short life may outrun.
		if at.Before(rec.StartedAt) {
			at = rec.StartedAt
		}
		rec.FinishedAt, rec.ExitCode, rec.Reason = at, code, reason
	})
	if err != nil {
		log.Error("recording a container's end", "error", err)
		c.mu.Lock()
		c.rec.FinishedAt, c.rec.ExitCode, c.rec.Reason = at, code, reason
		c.mu.Unlock()
	}
	fault.Point("finish.recorded")
	close(c.exited)
	c.letGo()
	if err := c.group.Remove(); err != nil {
		log.Warn("removing a container's cgroup", "error", err)
	}
	log.Info("container ended", "exitCode", code, "reason", reason)
	c.sandbox.r.emit(c.id, c.sandbox, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// signal sends sig to the container's first process.
func (c *container) signal(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd == nil {
		return os.ErrProcessDone
	}
	err := unix.PidfdSendSignal(int(c.pidfd.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// StopContainer implements cri.Runtime: the container's stop signal, then,
// after the timeout, SIGKILL to all of it. A timeout of 0 kills at once.
func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (_ *runtimeapi.StopContainerResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.stopContainer(ctx, c, time.Duration(req.Timeout)*time.Second); err != nil {
		return nil, fmt.Errorf("failed to stop container %q: %w", c.id, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *Runtime) stopContainer(ctx context.Context, c *container, timeout time.Duration) error {
	if c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	if timeout > 0 {
		name := c.record().StopSig
		sig, err := parseSignal(name)
		if err != nil {
			return err
		}
		if err := c.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("sending %s: %w", name, err)
		}
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-c.exited:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	if err := c.signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing: %w", err)
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the killed container to end: %w", ctx.Err())
	}
}

// RemoveContainer implements cri.Runtime: it kills the container if it runs,
// and removes it. It is idempotent.
func (r *Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (_ *runtimeapi.RemoveContainerResponse, err error) {
	defer toGRPC(&err)
	c, err := r.container(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.removeContainer(ctx, c); err != nil {
		return nil, fmt.Errorf("failed to remove container %q: %w", c.id, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r *Runtime) removeContainer(ctx context.Context, c *container) error {
	for {
		if err := r.stopContainer(ctx, c, 0); err != nil {
			return err
		}
		c.op.Lock()
		if c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			break
		}
		c.op.Unlock() // a start came in between
	}
	defer c.op.Unlock()
	if c.gone {
		return nil
	}
	c.letGo()
	if err := r.eraseContainer(ctx, c); err != nil {
		return err
	}
	c.gone = true
	selinux.Release(c.rec.ProcessLabel)
	r.mu.Lock()
	delete(r.containers, c.id)
	delete(r.names, containerName(c.config.Metadata, c.sandbox.config.Metadata))
	r.mu.Unlock()
	r.cpu.forget(c.id)
	r.emit(c.id, c.sandbox, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

// eraseContainer removes what a container that doesn't run left on disk; the
// record goes last, so that a killed node's successor finishes the work.
func (r *Runtime) eraseContainer(ctx context.Context, c *container) error {
	if err := c.group.Remove(); err != nil {
		return err
	}
	fault.Point("remove.cgroup")
	if err := os.RemoveAll(c.layer); err != nil {
		return fmt.Errorf("removing the writable layer: %w", err)
	}
	if err := r.cfg.Images.ReleaseLayers(ctx, c.id); err != nil {
		return fmt.Errorf("releasing the image's layers: %w", err)
	}
	fault.Point("remove.layer")
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("removing %s: %w", filepath.Base(c.dir), err)
	}
	return nil
}
