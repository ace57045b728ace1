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

	"unipod.dev/unipod/internal/crilog"
	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/security/selinux"
)

// reconcile compares records with what is there: it adopts what belongs to a
// finished sandbox or container and removes the rest. It runs before the
// runtime answers anybody.
func (r *Runtime) reconcile(ctx context.Context) error {
	if err := r.sweepUnrecorded(); err != nil {
		return err
	}
	sandboxes, err := ReadSandboxRecords(r.cfg.Run)
	if err != nil {
		return err
	}
	children := map[string]map[string]pause.Child{}
	for _, rec := range sandboxes {
		found, err := r.adoptSandbox(ctx, *rec)
		if err != nil {
			return fmt.Errorf("sandbox %s of an earlier node: %w", rec.ID, err)
		}
		children[rec.ID] = found
	}
	containers, err := ReadContainerRecords(r.cfg.Run)
	if err != nil {
		return err
	}
	for _, rec := range containers {
		if err := r.adoptContainer(ctx, *rec, children[rec.SandboxID]); err != nil {
			return fmt.Errorf("container %s of an earlier node: %w", rec.ID, err)
		}
	}
	for id, left := range children {
		r.endStrays(r.sandboxes[id], left)
	}
	if err := r.sweepOrphans(ctx); err != nil {
		return err
	}
	for _, s := range r.sandboxes {
		if conn := s.conn; conn != nil {
			r.background.Go(func() { s.watch(conn) })
		}
	}
	return nil
}

// sweepUnrecorded removes the directories of what was killed before its
// record was written: nothing else of it exists.
func (r *Runtime) sweepUnrecorded() error {
	// Places where a mount was prepared by a node that was killed over it.
	for _, pattern := range []string{".overlay-*", ".image-*"} {
		places, err := filepath.Glob(filepath.Join(r.cfg.Run, pattern))
		if err != nil {
			return err
		}
		for _, place := range places {
			if err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				return &os.PathError{Op: "umount", Path: place, Err: err}
			}
			if err := os.Remove(place); err != nil {
				return err
			}
		}
	}
	for _, kind := range []string{"sandboxes", "containers"} {
		dir := filepath.Join(r.cfg.Run, kind)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(dir, e.Name(), recordName)); errors.Is(err, os.ErrNotExist) {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// adoptSandbox takes up a recorded sandbox, or undoes one that was never
// finished, and returns what its pause holds.
func (r *Runtime) adoptSandbox(ctx context.Context, rec SandboxRecord) (map[string]pause.Child, error) {
	config, err := unmarshalSandboxConfig(rec.Config)
	if err != nil {
		return nil, err
	}
	s := newSandbox(r, rec, config)
	if s.group, err = r.cfg.Cgroups.Pod(config.GetLinux().GetCgroupParent(), rec.ID); err != nil {
		return nil, err
	}
	if !rec.Ready {
		return nil, r.undoSandbox(ctx, s)
	}
	r.sandboxes[s.id] = s
	r.names[s.name] = s.id
	if !rec.StoppedAt.IsZero() {
		close(s.ended)
		return nil, nil
	}
	conn, err := pause.Connect(ctx, s.dir)
	if errdefs.IsNotFound(err) {
		r.log.Warn("the pod ended while no node watched", "pod", podName(s), "sandbox", s.id)
		if err := s.group.Kill(ctx); err != nil {
			return nil, err
		}
		close(s.ended)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.conn = conn
	list, err := conn.Children(ctx)
	if err != nil {
		return nil, err
	}
	held := make(map[string]pause.Child, len(list))
	for _, ch := range list {
		held[ch.ID] = ch
	}
	r.log.Info("pod adopted", "pod", podName(s), "sandbox", s.id, "processes", len(list))
	return held, nil
}

// undoSandbox removes a sandbox whose making was cut off.
func (r *Runtime) undoSandbox(ctx context.Context, s *sandbox) error {
	conn, err := pause.Connect(ctx, s.dir)
	switch {
	case err == nil:
		conn.Terminate()
		<-conn.Done()
		conn.Close()
	case !errdefs.IsNotFound(err):
		r.log.Warn("connecting to a half-made pod", "sandbox", s.id, "error", err)
	}
	// A pause that doesn't listen yet, and a host PID pod's processes, go by
	// the cgroup.
	s.removeGroup()
	if err := r.cfg.Network.Teardown(ctx, s.id); err != nil {
		return err
	}
	r.log.Info("undid a half-made sandbox", "pod", podName(s), "sandbox", s.id)
	return os.RemoveAll(s.dir)
}

// adoptContainer takes up a recorded container; it takes its process out of
// held.
func (r *Runtime) adoptContainer(ctx context.Context, rec ContainerRecord, held map[string]pause.Child) error {
	config, err := unmarshalContainerConfig(rec.Config)
	if err != nil {
		return err
	}
	s := r.sandboxes[rec.SandboxID]
	if s == nil || !rec.Ready {
		c := &container{id: rec.ID, dir: filepath.Join(r.cfg.Run, "containers", rec.ID), layer: filepath.Join(r.cfg.Root, "containers", rec.ID)}
		return r.eraseUnfinished(ctx, c)
	}
	if _, err := unmarshalResources(rec.Resources); err != nil {
		return err
	}
	c := newContainer(r, s, rec, config)
	if c.group, err = s.group.Child(rec.ID); err != nil {
		return err
	}
	selinux.Reserve(rec.ProcessLabel)
	r.containers[c.id] = c
	r.names[containerName(config.Metadata, s.config.Metadata)] = c.id
	if rec.state() == runtimeapi.ContainerState_CONTAINER_EXITED {
		close(c.exited)
		closeChild(held, rec.ID)
		return nil
	}
	ch, runs := held[rec.ID]
	delete(held, rec.ID)
	if !runs {
		if rec.state() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			// Pause died with it, or forgot it: nobody knows how it ended.
			c.finish(unknownExitCode, time.Now())
		}
		return nil
	}
	if rec.StartedAt.IsZero() { // killed between the start and its record
		err := c.update(func(rec *ContainerRecord) { rec.StartedAt, rec.PID = ch.StartedAt, ch.PID })
		if err != nil {
			return err
		}
	}
	return c.resume(ch)
}

// resume takes up the container's streams where the last node left them. An
// exit meanwhile is reported by the connection to pause, as any other.
func (c *container) resume(ch pause.Child) error {
	c.pidfd = ch.Pidfd
	if len(ch.Keep) > 0 {
		c.pts, ch.Keep = ch.Keep[0], ch.Keep[1:]
	}
	cio, err := restoreIO(ch.Keep, c.config.Tty)
	if err != nil {
		return err
	}
	// Containers may write to the log's directory, by a hostPath of theirs: what
	// one has done there is no reason not to serve the others.
	log, err := crilog.Resume(c.rec.LogPath)
	if err != nil {
		c.sandbox.r.log.Error("a container goes on without a log until it is rotated", "pod", podName(c.sandbox), "container", c.config.Metadata.Name, "id", c.id, "error", err)
	}
	cio.start(log)
	c.io = cio
	return nil
}

// eraseUnfinished removes a container whose making was cut off, or whose
// sandbox is gone.
func (r *Runtime) eraseUnfinished(ctx context.Context, c *container) error {
	if err := os.RemoveAll(c.layer); err != nil {
		return err
	}
	if err := r.cfg.Images.ReleaseLayers(ctx, c.id); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

func closeChild(held map[string]pause.Child, id string) {
	ch, ok := held[id]
	if !ok {
		return
	}
	delete(held, id)
	if ch.Pidfd != nil {
		ch.Pidfd.Close()
	}
	for _, f := range ch.Keep {
		f.Close()
	}
}

// endStrays kills what pause holds beside containers: execs whose client went
// with the last node. Their exits are released as they are reported.
func (r *Runtime) endStrays(s *sandbox, held map[string]pause.Child) {
	for id, ch := range held {
		if ch.Pidfd != nil && !ch.Exited {
			killTree(&execProcess{pid: ch.PID, fd: ch.Pidfd})
			r.log.Info("ended an exec of an earlier node", "sandbox", s.id, "exec", id)
		}
		closeChild(held, id)
	}
}

// sweepOrphans removes what a reboot or a crash left without a record.
func (r *Runtime) sweepOrphans(ctx context.Context) error {
	dir := filepath.Join(r.cfg.Root, "containers")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, known := r.containers[e.Name()]; !known {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("removing an orphaned writable layer: %w", err)
			}
		}
	}
	for _, owner := range r.cfg.Images.Owners() {
		if _, known := r.containers[owner]; !known {
			if err := r.cfg.Images.ReleaseLayers(ctx, owner); err != nil {
				return err
			}
		}
	}
	live := map[string]bool{}
	for id, s := range r.sandboxes {
		if s.rec.StoppedAt.IsZero() {
			live[id] = true
		}
	}
	return r.cfg.Network.Reconcile(ctx, live)
}
