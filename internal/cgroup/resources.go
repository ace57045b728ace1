package cgroup

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resources limits a group. Zero values are unset: left as they are.
type Resources struct {
	CPUShares uint64 // cpu.shares; converted to cpu.weight on v2
	CPUQuota  int64  // µs per period; -1 = unlimited
	CPUPeriod uint64 // µs
	CPUs      string // cpuset, as "0-3,7"
	Mems      string // NUMA nodes, as CPUs
	Memory    int64  // bytes; -1 = unlimited
	// MemorySwap limits memory and swap together, in bytes; -1 = unlimited.
	// Equal to Memory it means no swap.
	MemorySwap int64
	Hugepages  []HugepageLimit
	Pids       int64             // -1 = unlimited
	Unified    map[string]string // cgroup v2 files by name

	// Devices are allowed beside the default ones. Only Create looks at
	// them, and only for containers.
	Devices []DeviceRule
	// AllDevices leaves a (privileged) container's devices open.
	AllDevices bool
}

// HugepageLimit limits pages of one size, named as the kernel does ("2MB").
type HugepageLimit struct {
	PageSize string
	Limit    uint64 // bytes
}

// FromCRI translates the CRI's resources of a container or pod. As the CRI's
// other runtimes do, a memory limit without a swap limit allows no swap.
func FromCRI(r *runtimeapi.LinuxContainerResources) Resources {
	if r == nil {
		return Resources{}
	}
	out := Resources{
		CPUShares:  uint64(max(r.CpuShares, 0)),
		CPUQuota:   r.CpuQuota,
		CPUPeriod:  uint64(max(r.CpuPeriod, 0)),
		CPUs:       r.CpusetCpus,
		Mems:       r.CpusetMems,
		Memory:     r.MemoryLimitInBytes,
		MemorySwap: r.MemorySwapLimitInBytes,
		Unified:    r.Unified,
	}
	if out.Memory != 0 && out.MemorySwap == 0 {
		out.MemorySwap = out.Memory
	}
	for _, l := range r.HugepageLimits {
		out.Hugepages = append(out.Hugepages, HugepageLimit{PageSize: l.PageSize, Limit: l.Limit})
	}
	return out
}

// check refuses what this machine can't do, before anything is made.
func (h *Hierarchy) check(r Resources) error {
	if len(r.Unified) > 0 && h.version == 1 {
		return fmt.Errorf("unified resources need cgroup v2, this machine has v1: %w", errdefs.ErrFailedPrecondition)
	}
	for file := range r.Unified {
		if strings.Contains(file, "/") || !strings.Contains(file, ".") {
			return fmt.Errorf("unified resource %q is not the name of a cgroup file: %w", file, errdefs.ErrInvalidArgument)
		}
	}
	if r.MemorySwap > 0 && r.Memory > 0 && r.MemorySwap < r.Memory {
		return fmt.Errorf("memory_swap_limit_in_bytes %d is less than memory_limit_in_bytes %d: %w", r.MemorySwap, r.Memory, errdefs.ErrInvalidArgument)
	}
	if r.MemorySwap > 0 && r.MemorySwap != r.Memory && !h.swap {
		return fmt.Errorf("memory_swap_limit_in_bytes: the kernel has no swap accounting (boot it with swapaccount=1): %w", errdefs.ErrFailedPrecondition)
	}
	return h.checkHugepages(r.Hugepages)
}

// checkHugepages refuses a limit for pages the kernel doesn't count. A limit
// of zero is kubelet's way to say "not asked for" and needs nothing.
func (h *Hierarchy) checkHugepages(limits []HugepageLimit) error {
	if len(limits) == 0 {
		return nil
	}
	counted := h.version == 2 || h.hugetlb2 || slices.ContainsFunc(h.trees, func(t tree) bool { return t.has("hugetlb") })
	sizes := cgroups.HugePageSizes()
	for _, l := range limits {
		switch {
		case !slices.Contains(sizes, l.PageSize) && l.Limit > 0:
			return fmt.Errorf("hugepage_limits: page size %q is not one of the kernel's (%s): %w", l.PageSize, strings.Join(sizes, ", "), errdefs.ErrInvalidArgument)
		case !counted && l.Limit > 0:
			return fmt.Errorf("hugepage_limits: cgroup controller hugetlb is missing: %w", errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// apply writes r's limits.
func (g *Group) apply(r Resources) error {
	oc := g.h.convert(r)
	if g.h.version == 2 {
		if r.empty() {
			return nil
		}
		if g.slice != "" {
			// Told to systemd, or it would undo it at its next reload.
			m, err := g.manager(oc)
			if err != nil {
				return err
			}
			return m.Set(oc)
		}
		dir := g.h.unified.dir + g.path
		m, err := fs2.NewManager(&cgroups.Cgroup{Resources: oc}, dir)
		if err != nil {
			return err
		}
		return m.Set(oc)
	}
	for _, t := range g.h.trees {
		if err := g.applyV1(t, oc); err != nil {
			return err
		}
	}
	if g.h.hugetlb2 && len(oc.HugetlbLimit) > 0 {
		return g.applyHugetlb2(oc.HugetlbLimit)
	}
	return nil
}

// applyHugetlb2 limits huge pages where that controller alone is cgroup2's.
// It is switched on down to the group only when someone asks.
func (g *Group) applyHugetlb2(limits []*cgroups.HugepageLimit) error {
	dir := g.h.unified.dir
	for part := range strings.SplitSeq(strings.TrimPrefix(g.path, "/"), "/") {
		if err := writeFile(dir+"/cgroup.subtree_control", "+hugetlb"); err != nil {
			return fmt.Errorf("enabling cgroup controller hugetlb: %w", err)
		}
		dir += "/" + part
	}
	r := &cgroups.Resources{HugetlbLimit: limits, SkipDevices: true}
	m, err := fs2.NewManager(&cgroups.Cgroup{Resources: r}, dir)
	if err != nil {
		return err
	}
	return m.Set(r)
}

func (r Resources) empty() bool {
	return r.CPUShares == 0 && r.CPUQuota == 0 && r.CPUPeriod == 0 && r.CPUs == "" && r.Mems == "" && r.Memory == 0 &&
		r.MemorySwap == 0 && len(r.Hugepages) == 0 && r.Pids == 0 && len(r.Unified) == 0
}

// convert puts r in the words of the opencontainers library, which knows the
// orders and retries with which limits are written.
func (h *Hierarchy) convert(r Resources) *cgroups.Resources {
	oc := &cgroups.Resources{
		CpuShares:   r.CPUShares,
		CpuWeight:   cgroups.ConvertCPUSharesToCgroupV2Value(r.CPUShares),
		CpuQuota:    r.CPUQuota,
		CpuPeriod:   r.CPUPeriod,
		CpusetCpus:  r.CPUs,
		CpusetMems:  r.Mems,
		Memory:      r.Memory,
		MemorySwap:  r.MemorySwap,
		Unified:     r.Unified,
		SkipDevices: true,
	}
	if !h.swap {
		oc.MemorySwap = 0
	}
	if r.Pids != 0 {
		oc.PidsLimit = &r.Pids
	}
	sizes := cgroups.HugePageSizes()
	for _, l := range r.Hugepages {
		if slices.Contains(sizes, l.PageSize) {
			oc.HugetlbLimit = append(oc.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: l.PageSize, Limit: l.Limit})
		}
	}
	return oc
}

// applyV1 writes the limits that belong to one v1 hierarchy. Only hierarchies
// with something to write are touched.
func (g *Group) applyV1(t tree, r *cgroups.Resources) error {
	dir := t.dir + g.path
	if t.has("cpu") && (r.CpuShares != 0 || r.CpuQuota != 0 || r.CpuPeriod != 0) {
		if err := new(fs.CpuGroup).Set(dir, r); err != nil {
			return err
		}
	}
	if t.has("memory") && (r.Memory != 0 || r.MemorySwap != 0) {
		if err := new(fs.MemoryGroup).Set(dir, r); err != nil {
			return err
		}
	}
	if t.has("pids") && r.PidsLimit != nil {
		if err := new(fs.PidsGroup).Set(dir, r); err != nil {
			return err
		}
	}
	if t.has("hugetlb") && len(r.HugetlbLimit) > 0 {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := g.enterLate(dir); err != nil {
			return err
		}
		if err := new(fs.HugetlbGroup).Set(dir, r); err != nil {
			return err
		}
	}
	if t.has("cpuset") && (r.CpusetCpus != "" || r.CpusetMems != "") {
		if err := new(fs.CpusetGroup).ApplyDir(dir, r, -1); err != nil {
			return err
		}
		return g.enterLate(dir)
	}
	return nil
}

// enterLate moves the group's processes into a directory that an update made
// for them.
func (g *Group) enterLate(dir string) error {
	pids, err := g.PIDs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := cgroups.WriteCgroupProc(dir, pid); err != nil && !isGone(err) {
			return err
		}
	}
	return nil
}
