package local

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"unipod.dev/unipod/internal/anatomy"
)

// hierarchy is where control groups are mounted: one directory with cgroup
// v2, one per controller with v1.
type hierarchy struct {
	unified string
	v1      map[string]string
}

// findHierarchy reads it from the mount table of this process.
func findHierarchy(table []mountLine) hierarchy {
	h := hierarchy{v1: map[string]string{}}
	for _, m := range table {
		switch m.fstype {
		case "cgroup2":
			if h.unified == "" {
				h.unified = m.target
			}
		case "cgroup":
			for o := range strings.SplitSeq(m.super, ",") {
				if _, ok := h.v1[o]; !ok {
					h.v1[o] = m.target
				}
			}
		}
	}
	return h
}

// read describes the group at path; nil when there is none.
func (h hierarchy) read(path string) *anatomy.Cgroup {
	if path == "" {
		return nil
	}
	c := &anatomy.Cgroup{Path: path}
	if dir, ok := h.v1["memory"]; ok {
		return h.readV1(c, filepath.Join(dir, path), path)
	}
	dir := filepath.Join(h.unified, path)
	if _, err := os.Stat(dir); h.unified == "" || err != nil {
		return nil
	}
	c.MemoryBytes = number(dir, "memory.current")
	c.MemoryLimit = number(dir, "memory.max")
	stat, _ := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	c.CPU = time.Duration(field(stat, "usage_usec")) * time.Microsecond
	max, _ := os.ReadFile(filepath.Join(dir, "cpu.max"))
	if f := strings.Fields(string(max)); len(f) == 2 {
		c.CPULimit = cores(parse(f[0]), parse(f[1]))
	}
	c.PIDs = number(dir, "pids.current")
	c.PIDLimit = number(dir, "pids.max")
	return c
}

func (h hierarchy) readV1(c *anatomy.Cgroup, memory, path string) *anatomy.Cgroup {
	if _, err := os.Stat(memory); err != nil {
		return nil
	}
	c.MemoryBytes = number(memory, "memory.usage_in_bytes")
	// "No limit" is the largest number of pages.
	if limit := number(memory, "memory.limit_in_bytes"); limit < 1<<62 {
		c.MemoryLimit = limit
	}
	if dir, ok := h.v1["cpuacct"]; ok {
		c.CPU = time.Duration(number(filepath.Join(dir, path), "cpuacct.usage"))
	}
	if dir, ok := h.v1["cpu"]; ok {
		c.CPULimit = cores(number(filepath.Join(dir, path), "cpu.cfs_quota_us"), number(filepath.Join(dir, path), "cpu.cfs_period_us"))
	}
	if dir, ok := h.v1["pids"]; ok {
		c.PIDs = number(filepath.Join(dir, path), "pids.current")
		c.PIDLimit = number(filepath.Join(dir, path), "pids.max")
	}
	return c
}

func cores(quota, period uint64) float64 {
	if quota == 0 || period == 0 {
		return 0
	}
	return float64(quota) / float64(period)
}

// number reads a file that holds one number; "max", "-1" and a file that
// isn't there are 0.
func number(dir, name string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	return parse(string(bytes.TrimSpace(b)))
}

func parse(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
