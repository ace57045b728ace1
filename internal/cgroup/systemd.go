package cgroup

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/systemd"
)

// scopePrefix begins the names of pods' units.
const scopePrefix = "cri-unipod-"

func runningSystemd() bool { return systemd.IsRunningSystemd() }

// expandSlice turns a slice's name into its path, as systemd nests them.
func expandSlice(slice string) (string, error) {
	p, err := systemd.ExpandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("%q is not a systemd slice: %w: %w", slice, errdefs.ErrInvalidArgument, err)
	}
	return p, nil
}

func (g *Group) startScope() error {
	return fmt.Errorf("systemd driver: %w", errdefs.ErrNotImplemented)
}
