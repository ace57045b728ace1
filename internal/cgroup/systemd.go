package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
)

// With systemd a pod is one transient scope in the slice that the CRI names
// as its parent, delegated: what is below the scope is ours to make, as with
// the other driver. (Units of their own for containers would gain nothing and
// cost a round trip to systemd each.)

// scopePrefix begins the names of pods' units: cri-unipod-ID.scope.
const scopePrefix = "cri-unipod"

func runningSystemd() bool { return systemd.IsRunningSystemd() }

// expandSlice turns a slice's name into its path, as systemd nests them.
func expandSlice(slice string) (string, error) {
	p, err := systemd.ExpandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("%q is not a systemd slice, as the cgroup driver wants it: %w: %w", slice, errdefs.ErrInvalidArgument, err)
	}
	return p, nil
}

// manager speaks to systemd about the pod's scope.
func (g *Group) manager(r *cgroups.Resources) (cgroups.Manager, error) {
	id := strings.TrimSuffix(strings.TrimPrefix(path.Base(g.path), scopePrefix+"-"), ".scope")
	return systemd.NewUnifiedManager(&cgroups.Cgroup{
		Name: id, Parent: g.slice, ScopePrefix: scopePrefix, Resources: r, Systemd: true,
	}, g.h.unified.dir+g.path)
}

// startScope makes the pod's scope. systemd wants a process in a scope from
// its beginning to its end, and the pod's own isn't there yet: a placeholder
// stands in until it comes.
func (g *Group) startScope() error {
	leaf := g.h.unified.dir + g.path + "/" + pauseLeaf
	if pids, err := cgroups.GetPids(leaf); err == nil && len(pids) > 0 {
		return nil
	}
	m, err := g.manager(&cgroups.Resources{SkipDevices: true})
	if err != nil {
		return err
	}
	p, err := startPlaceholder()
	if err != nil {
		return fmt.Errorf("starting a placeholder for %s: %w", path.Base(g.path), err)
	}
	if err := m.Apply(p.pid); err != nil {
		p.end()
		return err
	}
	if err := unix.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		p.end()
		return &os.PathError{Op: "mkdir", Path: leaf, Err: err}
	}
	if err := cgroups.WriteCgroupProc(leaf, p.pid); err != nil {
		p.end()
		return err
	}
	g.h.placeholders.Go(func() {
		defer p.end()
		awaitPod(g.h.closing, leaf)
	})
	return nil
}

// podTimeout is how long a pod's process may take to come.
const podTimeout = time.Minute

// awaitPod returns when a second process has entered leaf, or none will.
func awaitPod(ctx context.Context, leaf string) {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := cgroups.GetPids(leaf)
		if err != nil || len(pids) != 1 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stopScope ends the pod's unit, whose processes are dead. systemd removes
// the group; one that it no longer knows is removed by the caller.
func (g *Group) stopScope() error {
	m, err := g.manager(&cgroups.Resources{SkipDevices: true})
	if err != nil {
		return err
	}
	return m.Destroy()
}
