package cgroup

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
)

// Detail reads everything the kernel counts of the group, in the library's
// own terms: some thirty files, for scraping. [Group.Stats] is the quick one.
func (g *Group) Detail() (*cgroups.Stats, error) {
	paths := g.Paths()
	if len(paths) == 0 {
		return nil, fmt.Errorf("measuring cgroup %s: %w", g.path, errdefs.ErrNotFound)
	}
	var st *cgroups.Stats
	var err error
	if g.h.version == 2 {
		var m *fs2.Manager
		if m, err = fs2.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, paths[""]); err == nil {
			st, err = m.GetStats()
		}
	} else {
		delete(paths, "")
		var m *fs.Manager
		if m, err = fs.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, paths); err == nil {
			st, err = m.GetStats()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("measuring cgroup %s: %w", g.path, err)
	}
	return st, nil
}
