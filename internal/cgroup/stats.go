package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Stats is a group's usage at one moment. A nil part could not be measured
// here; sizes are bytes.
type Stats struct {
	Time   time.Time
	CPU    CPUStats
	Memory MemoryStats
	Swap   *SwapStats
	Pids   PidsStats
	IO     IOStats
}

// CPUStats is CPU time since the group was made.
type CPUStats struct {
	UsageNanoseconds uint64
	PSI              *PSI
}

// MemoryStats has the figures kubelet shows: the working set is what can't be
// reclaimed cheaply, usage without inactive page cache.
type MemoryStats struct {
	Usage, WorkingSet, RSS      uint64
	PageFaults, MajorPageFaults uint64
	Limit                       uint64 // 0 = none
	Available                   uint64 // limit less working set; 0 without a limit
	PSI                         *PSI
}

// SwapStats is swap alone, without memory.
type SwapStats struct {
	Usage     uint64
	Limit     uint64 // 0 = none
	Available uint64 // limit less usage; 0 without a limit
}

// PidsStats counts processes and threads.
type PidsStats struct {
	Current uint64
	Limit   uint64 // 0 = none
}

// IOStats has the pressure of block I/O.
type IOStats struct{ PSI *PSI }

// PSI is pressure stall information: how much of the time some or all of the
// group's tasks waited (Documentation/accounting/psi.rst).
type PSI struct{ Some, Full PSIData }

// PSIData has percentages over the last 10, 60 and 300 s and the total.
type PSIData struct {
	Avg10, Avg60, Avg300 float64
	TotalNanoseconds     uint64
}

// noLimit is above every real limit and below v1's "unlimited" (the highest
// page-aligned int64).
const noLimit = 1 << 62

// Stats measures the group. It reads only the files it needs: seven to ten,
// some 10 µs each. An absent group is errdefs.ErrNotFound.
func (g *Group) Stats() (*Stats, error) {
	s, err := g.stats()
	if isGone(err) {
		return nil, fmt.Errorf("measuring cgroup %s: %w: %w", g.path, errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("measuring cgroup %s: %w", g.path, err)
	}
	return s, nil
}

func (g *Group) stats() (*Stats, error) {
	s := &Stats{Time: time.Now()}
	r := reader{buf: make([]byte, 16<<10)}
	var err error
	if g.h.version == 2 {
		err = g.statsV2(&r, s)
	} else {
		err = g.statsV1(&r, s)
	}
	if err != nil {
		return nil, err
	}
	m := &s.Memory
	if m.Limit != 0 {
		m.Available = m.Limit - min(m.Limit, m.WorkingSet)
	}
	if s.Swap != nil && s.Swap.Limit != 0 {
		s.Swap.Available = s.Swap.Limit - min(s.Swap.Limit, s.Swap.Usage)
	}
	// On v1 these files are in the cgroup2 hierarchy all the same.
	dir := g.h.unified.dir + g.path
	s.CPU.PSI = r.psi(dir + "/cpu.pressure")
	m.PSI = r.psi(dir + "/memory.pressure")
	s.IO.PSI = r.psi(dir + "/io.pressure")
	return s, nil
}

func (g *Group) statsV1(r *reader, s *Stats) error {
	var err error
	for _, t := range g.h.trees {
		dir := t.dir + g.path
		if t.has("cpuacct") {
			if s.CPU.UsageNanoseconds, err = r.number(dir + "/cpuacct.usage"); err != nil {
				return err
			}
		}
		if t.has("pids") {
			if s.Pids, err = r.pids(dir); err != nil {
				return err
			}
		}
		if !t.has("memory") {
			continue
		}
		m := &s.Memory
		if m.Usage, err = r.number(dir + "/memory.usage_in_bytes"); err != nil {
			return err
		}
		stat, err := r.keys(dir+"/memory.stat", "total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault",
			"hierarchical_memory_limit", "total_swap", "hierarchical_memsw_limit")
		if err != nil {
			return err
		}
		m.WorkingSet = m.Usage - min(m.Usage, stat[0])
		m.RSS, m.PageFaults, m.MajorPageFaults = stat[1], stat[2], stat[3]
		if stat[4] < noLimit {
			m.Limit = stat[4]
		}
		if g.h.swap {
			s.Swap = &SwapStats{Usage: stat[5]}
			if stat[6] < noLimit && m.Limit != 0 {
				s.Swap.Limit = stat[6] - min(stat[6], m.Limit)
			}
		}
	}
	return nil
}

func (g *Group) statsV2(r *reader, s *Stats) error {
	dir := g.h.unified.dir + g.path
	cpu, err := r.keys(dir+"/cpu.stat", "usage_usec")
	if err != nil {
		return err
	}
	s.CPU.UsageNanoseconds = cpu[0] * 1000
	if s.Pids, err = r.pids(dir); err != nil {
		return err
	}
	m := &s.Memory
	if m.Usage, err = r.number(dir + "/memory.current"); err != nil {
		return err
	}
	stat, err := r.keys(dir+"/memory.stat", "inactive_file", "anon", "pgfault", "pgmajfault")
	if err != nil {
		return err
	}
	m.WorkingSet = m.Usage - min(m.Usage, stat[0])
	m.RSS, m.PageFaults, m.MajorPageFaults = stat[1], stat[2], stat[3]
	if m.Limit, err = r.limit(dir + "/memory.max"); err != nil {
		return err
	}
	usage, err := r.number(dir + "/memory.swap.current")
	if errors.Is(err, unix.ENOENT) {
		return nil // a kernel without swap accounting
	}
	if err != nil {
		return err
	}
	s.Swap = &SwapStats{Usage: usage}
	s.Swap.Limit, err = r.limit(dir + "/memory.swap.max")
	return err
}

// OOMKills counts the processes of the group killed for lack of memory since
// it was made. The count goes with the group: read it before Remove.
func (g *Group) OOMKills() (uint64, error) {
	r := reader{buf: make([]byte, 4<<10)}
	file := g.h.unified.dir + g.path + "/memory.events"
	for _, t := range g.h.trees {
		if t.has("memory") {
			file = t.dir + g.path + "/memory.oom_control"
		}
	}
	n, err := r.keys(file, "oom_kill")
	if isGone(err) {
		return 0, fmt.Errorf("counting OOM kills in cgroup %s: %w: %w", g.path, errdefs.ErrNotFound, err)
	}
	if err != nil {
		return 0, fmt.Errorf("counting OOM kills in cgroup %s: %w", g.path, err)
	}
	return n[0], nil
}

// reader reads small kernel files without allocating for each.
type reader struct{ buf []byte }

func (r *reader) read(file string) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for {
		m, err := unix.Read(fd, r.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: file, Err: err}
		}
		if m == 0 {
			return r.buf[:n], nil
		}
		if n += m; n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
	}
}

func (r *reader) number(file string) (uint64, error) {
	b, err := r.read(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// limit reads a number or "max", which is 0 here.
func (r *reader) limit(file string) (uint64, error) {
	b, err := r.read(file)
	if err != nil {
		return 0, err
	}
	if b = bytes.TrimSpace(b); string(b) == "max" {
		return 0, nil
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

func (r *reader) pids(dir string) (p PidsStats, err error) {
	if p.Current, err = r.number(dir + "/pids.current"); err != nil {
		return p, err
	}
	p.Limit, err = r.limit(dir + "/pids.max")
	return p, err
}

// keys reads the values of keys in a file of "key value" lines; one that
// isn't there is 0.
func (r *reader) keys(file string, keys ...string) ([]uint64, error) {
	b, err := r.read(file)
	if err != nil {
		return nil, err
	}
	return parseKeys(b, keys), nil
}

func parseKeys(b []byte, keys []string) []uint64 {
	values := make([]uint64, len(keys))
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok {
			continue
		}
		for i, k := range keys {
			if string(key) == k {
				values[i], _ = strconv.ParseUint(string(value), 10, 64)
			}
		}
	}
	return values
}

// psi reads a pressure file; nil where the kernel doesn't measure pressure.
func (r *reader) psi(file string) *PSI {
	b, err := r.read(file)
	if err != nil {
		return nil
	}
	return parsePSI(b)
}

func parsePSI(b []byte) *PSI {
	var p PSI
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		d := &p.Some
		if string(fields[0]) == "full" {
			d = &p.Full
		}
		for _, f := range fields[1:] {
			key, value, _ := bytes.Cut(f, []byte("="))
			x, err := strconv.ParseFloat(string(value), 64)
			if err != nil || math.IsNaN(x) || x < 0 {
				return nil
			}
			switch string(key) {
			case "avg10":
				d.Avg10 = x
			case "avg60":
				d.Avg60 = x
			case "avg300":
				d.Avg300 = x
			case "total":
				total, err := strconv.ParseUint(string(value), 10, 64)
				if err != nil {
					return nil
				}
				d.TotalNanoseconds = total * 1000
			}
		}
	}
	return &p
}
