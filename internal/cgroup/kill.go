package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Kill sends SIGKILL to every process of the group and of all in it at once,
// those being forked meanwhile included (cgroup.kill), and returns when none
// is left or ctx ends. A group that isn't there has none.
func (g *Group) Kill(ctx context.Context) error {
	dir := g.h.unified.dir + g.path
	err := writeFile(dir+"/cgroup.kill", "1")
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing cgroup %s: %w", g.path, err)
	}
	events, err := os.Open(dir + "/cgroup.events")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing cgroup %s: %w", g.path, err)
	}
	defer events.Close()
	return g.waitEmpty(ctx, events)
}

// waitEmpty waits for "populated 0", of which the kernel notifies pollers.
func (g *Group) waitEmpty(ctx context.Context, events *os.File) error {
	buf := make([]byte, 256)
	for {
		n, err := unix.Pread(int(events.Fd()), buf, 0)
		if isGone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("killing cgroup %s: reading cgroup.events: %w", g.path, err)
		}
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("killing cgroup %s: processes remain: %w", g.path, err)
		}
		// Short, to see ctx end; the kernel wakes us earlier.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 20); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("killing cgroup %s: poll: %w", g.path, err)
		}
	}
}

// isGone says that err means the group (or process) no longer exists.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH)
}
