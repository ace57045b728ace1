package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

func TestPlacement(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	ctr := makeContainer(t, pod, "ctr1", Resources{})
	pause, app := start(t, pod, "sleep"), start(t, ctr, "sleep")

	in := where(t, pause.Process.Pid)
	if want := pod.Path() + "/" + pauseLeaf; in[""] != want {
		t.Errorf("pause is in cgroup2 group %s, want %s", in[""], want)
	}
	for _, tr := range h.trees {
		if want := pod.Path(); tr.own && in[tr.names[0]] != want {
			t.Errorf("pause is in %s group %s, want %s", tr.names[0], in[tr.names[0]], want)
		}
		if !tr.own && tr.enter && in[tr.names[0]] != h.root {
			t.Errorf("pause is in %s group %s, want %s", tr.names[0], in[tr.names[0]], h.root)
		}
	}
	in = where(t, app.Process.Pid)
	if in[""] != ctr.Path() {
		t.Errorf("the container is in cgroup2 group %s, want %s", in[""], ctr.Path())
	}
	for _, tr := range h.trees {
		if tr.own && in[tr.names[0]] != ctr.Path() {
			t.Errorf("the container is in %s group %s, want %s", tr.names[0], in[tr.names[0]], ctr.Path())
		}
	}
	pids, err := pod.PIDs()
	if err != nil || len(pids) != 2 {
		t.Errorf("PIDs of the pod: %v, %v; want pause's and the container's", pids, err)
	}
	if pids, err := ctr.PIDs(); err != nil || len(pids) != 1 || pids[0] != app.Process.Pid {
		t.Errorf("PIDs of the container: %v, %v; want %d", pids, err, app.Process.Pid)
	}
}

func TestKillAndRemove(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	a, b := makeContainer(t, pod, "a", Resources{}), makeContainer(t, pod, "b", Resources{})
	pa, pb := start(t, a, "sleep"), start(t, b, "sleep")

	if err := a.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	pa.Wait()
	if pa.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("a ended with %v, want SIGKILL", pa.ProcessState)
	}
	if err := unix.Kill(pb.Process.Pid, 0); err != nil {
		t.Errorf("b: %v, want it alive", err)
	}
	if err := b.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removing a group with a live process: %v, want EBUSY", err)
	}
	if err := pod.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*Group{pod, a, b} {
		if g.Exists() {
			t.Errorf("%s exists after the pod's removal: %v", g.Path(), g.Paths())
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Errorf("killing a group that is gone: %v", err)
		}
		if err := g.Remove(); err != nil {
			t.Errorf("removing a group that is gone: %v", err)
		}
		if _, err := g.Stats(); !errdefs.IsNotFound(err) {
			t.Errorf("stats of a group that is gone: %v, want not found", err)
		}
		if err := g.Update(Resources{Memory: 64 << 20}); !errdefs.IsNotFound(err) {
			t.Errorf("updating a group that is gone: %v, want not found", err)
		}
	}
}

func TestKillForkBomb(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{Pids: 200})
	ctr := makeContainer(t, pod, "c", Resources{})
	cmd := command(t, ctr, `f() { f & f & }; f; sleep 1000`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if s, err := pod.Stats(); err == nil && s.Pids.Current > 50 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := ctr.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if pids, err := pod.PIDs(); err != nil || len(pids) != 0 {
		t.Errorf("after Kill: %v, %v", pids, err)
	}
}

func TestKillDeadline(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	start(t, pod, "sleep")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Either all are dead already, or the error says they aren't.
	if err := pod.Kill(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Kill: %v, want context.Canceled or nil", err)
	}
}

// value reads one of the group's files; v1 and v2 name them differently.
func value(t testing.TB, g *Group, controller, v1, v2 string) string {
	t.Helper()
	file := g.Paths()[controller] + "/" + v1
	if g.h.version == 2 {
		file = g.Paths()[""] + "/" + v2
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestLimits(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{Pids: 321, Memory: 512 << 20})
	ctr := makeContainer(t, pod, "c", Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20, MemorySwap: 64 << 20})
	check := func(g *Group, controller, v1, want1, v2, want2 string) {
		t.Helper()
		want := want1
		if h.version == 2 {
			want = want2
		}
		if got := value(t, g, controller, v1, v2); got != want {
			t.Errorf("%s %s = %s, want %s", controller, v1, got, want)
		}
	}
	check(pod, "pids", "pids.max", "321", "pids.max", "321")
	check(pod, "memory", "memory.limit_in_bytes", "536870912", "memory.max", "536870912")
	check(ctr, "cpu", "cpu.shares", "512", "cpu.weight", "59")
	check(ctr, "cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000")
	check(ctr, "memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864")

	// In place, both directions, with a process inside; memory and swap must
	// move together.
	app := start(t, ctr, "sleep")
	for _, limit := range []int64{128 << 20, 32 << 20} {
		if err := ctr.Update(Resources{Memory: limit, MemorySwap: limit}); err != nil {
			t.Fatal(err)
		}
		check(ctr, "memory", "memory.limit_in_bytes", strconv.FormatInt(limit, 10), "memory.max", strconv.FormatInt(limit, 10))
	}
	if err := ctr.Update(Resources{CPUQuota: -1}); err != nil {
		t.Fatal(err)
	}
	check(ctr, "cpu", "cpu.cfs_quota_us", "-1", "cpu.max", "max 100000")
	check(ctr, "cpu", "cpu.shares", "512", "cpu.weight", "59")
	// A cpuset that comes later takes the process along.
	if err := ctr.Update(Resources{CPUs: "0"}); err != nil {
		t.Fatal(err)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(app.Process.Pid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
		t.Errorf("affinity after cpuset 0: %d CPUs, %v", set.Count(), err)
	}
	check(ctr, "cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0")
}

func TestHugepages(t *testing.T) {
	h := open(t)
	sizes := cgroups.HugePageSizes()
	if len(sizes) == 0 {
		t.Skip("the kernel has no huge pages")
	}
	file := "/hugetlb." + sizes[0]
	var limits []HugepageLimit
	for _, size := range sizes {
		limits = append(limits, HugepageLimit{PageSize: size, Limit: 1 << 30})
	}
	pod := makePod(t, h, Resources{})
	ctr, err := pod.Child("c")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.checkHugepages(limits); err != nil {
		t.Skipf("the kernel doesn't count huge pages: %v", err)
	}
	start(t, pod, "sleep") // a process beside the container's group
	if err := ctr.Create(Resources{Hugepages: limits}); err != nil {
		t.Fatal(err)
	}
	start(t, ctr, "sleep")
	dir, v1 := ctr.Paths()["hugetlb"]
	name := file + ".limit_in_bytes"
	if !v1 {
		dir, name = ctr.Paths()[""], file+".max"
	}
	b, err := os.ReadFile(dir + name)
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(1<<30) {
		t.Errorf("%s: %s, %v", name, b, err)
	}
	if err := ctr.Update(Resources{Hugepages: []HugepageLimit{{sizes[0], 0}}}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + name); err != nil || strings.TrimSpace(string(b)) != "0" {
		t.Errorf("%s after the update: %s, %v", name, b, err)
	}
}

func TestOOM(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	ctr := makeContainer(t, pod, "c", Resources{Memory: 32 << 20, MemorySwap: 32 << 20})
	if n, err := ctr.OOMKills(); err != nil || n != 0 {
		t.Fatalf("OOM kills before: %d, %v", n, err)
	}
	cmd := start(t, ctr, "eat")
	cmd.Wait()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("ended with %v, want SIGKILL", cmd.ProcessState)
	}
	if n, err := ctr.OOMKills(); err != nil || n == 0 {
		t.Errorf("OOM kills after: %d, %v", n, err)
	}
}

func TestDevices(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	dir := t.TempDir()
	node := func(name string, major, minor uint32) string {
		p := filepath.Join(dir, name)
		if err := unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
			t.Fatal(err)
		}
		return p
	}
	null, mem, kmsg := node("null", 1, 3), node("mem", 1, 1), node("kmsg", 1, 11)
	closed := makeContainer(t, pod, "closed", Resources{})
	extra := makeContainer(t, pod, "extra", Resources{Devices: []DeviceRule{{'c', 1, 11, "rw"}}})
	all := makeContainer(t, pod, "all", Resources{AllDevices: true})
	for _, tt := range []struct {
		g    *Group
		dev  string
		want bool
	}{
		{closed, null, true}, {closed, mem, false}, {closed, kmsg, false},
		{extra, null, true}, {extra, kmsg, true}, {extra, mem, false},
		{all, null, true}, {all, kmsg, true},
	} {
		out, err := child(t, tt.g, "device", "CGROUP_TEST_DEVICE="+tt.dev).Output()
		if err != nil {
			t.Fatal(err)
		}
		errno := strings.TrimSpace(string(out))
		if got := errno != strconv.Itoa(int(unix.EPERM)); got != tt.want {
			t.Errorf("%s: opening %s allowed = %v (errno %s), want %v", tt.g.Path(), filepath.Base(tt.dev), got, errno, tt.want)
		}
	}
	bad, _ := pod.Child("bad")
	if err := bad.Create(Resources{Devices: []DeviceRule{{'x', 1, 1, "r"}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a rule of type x: %v, want invalid argument", err)
	}
	if bad.Exists() {
		t.Error("a failed Create left the group behind")
	}
}

func TestStats(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	ctr := makeContainer(t, pod, "c", Resources{Memory: 256 << 20, MemorySwap: 256 << 20, Pids: 77})
	start(t, ctr, "burn")
	var s *Stats
	for range 2000 {
		var err error
		if s, err = ctr.Stats(); err != nil {
			t.Fatal(err)
		}
		if s.CPU.UsageNanoseconds > 50e6 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if s.CPU.UsageNanoseconds < 50e6 {
		t.Errorf("CPU usage of a busy loop: %d ns", s.CPU.UsageNanoseconds)
	}
	m := s.Memory
	if m.Usage == 0 || m.WorkingSet == 0 || m.WorkingSet > m.Usage || m.RSS == 0 || m.PageFaults == 0 {
		t.Errorf("memory: %+v", m)
	}
	if m.Limit != 256<<20 || m.Available != m.Limit-m.WorkingSet {
		t.Errorf("memory limit %d, available %d, working set %d", m.Limit, m.Available, m.WorkingSet)
	}
	if s.Pids.Current < 1 || s.Pids.Limit != 77 {
		t.Errorf("pids: %+v", s.Pids)
	}
	p, err := pod.Stats()
	if err != nil || p.CPU.UsageNanoseconds < s.CPU.UsageNanoseconds || p.Memory.Usage < m.Usage/2 {
		t.Errorf("the pod's stats don't cover its container's: %+v, %v", p, err)
	}
}

func TestCreateIsIdempotent(t *testing.T) {
	h := open(t)
	pod := makePod(t, h, Resources{})
	ctr := makeContainer(t, pod, "c", Resources{})
	start(t, ctr, "sleep")
	if err := pod.Create(Resources{Pids: 100}); err != nil {
		t.Fatal(err)
	}
	if err := ctr.Create(Resources{}); err != nil {
		t.Fatal(err)
	}
	// A parent that vanishes is made again.
	if err := pod.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := (&Group{h: h, path: h.root}).Remove(); err != nil {
		t.Fatal(err)
	}
	makeContainer(t, makePod(t, h, Resources{}), "c", Resources{})
}

func TestContainerMounts(t *testing.T) {
	h := open(t)
	ctr := makeContainer(t, makePod(t, h, Resources{}), "c", Resources{Memory: 64 << 20})
	for _, privileged := range []bool{false, true} {
		mounts, err := ctr.ContainerMounts(privileged)
		if err != nil {
			t.Fatal(err)
		}
		if mounts[0].Target != "/sys/fs/cgroup" {
			t.Errorf("first mount at %s", mounts[0].Target)
		}
		for _, m := range mounts {
			var st unix.Statfs_t
			if err := unix.Fstatfs(int(m.Source.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			ro := st.Flags&unix.ST_RDONLY != 0
			want := !privileged || st.Type == unix.TMPFS_MAGIC
			if ro != want {
				t.Errorf("privileged %v: %s read-only = %v, want %v", privileged, m.Target, ro, want)
			}
			if st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC {
				t.Errorf("%s: flags %#x lack nosuid,nodev,noexec", m.Target, st.Flags)
			}
			if h.version == 1 && strings.HasSuffix(m.Target, "/memory") {
				if got := readAt(t, m.Source, "memory.limit_in_bytes"); got != "67108864" {
					t.Errorf("the container sees memory limit %s", got)
				}
			}
			if h.version == 2 && !privileged {
				if got := readAt(t, m.Source, "memory.max"); got != "67108864" {
					t.Errorf("the container sees memory limit %s", got)
				}
			}
			m.Source.Close()
		}
	}
}

func readAt(t testing.TB, dir *os.File, name string) string {
	t.Helper()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 256)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(buf[:n]))
}
