package cgroup

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/cgroups"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParseTrees(t *testing.T) {
	for _, tt := range []struct {
		name, mountinfo string
		trees           []tree
		unified         string
	}{
		{"v2", `30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
`, nil, "/sys/fs/cgroup"},
		{"hybrid, controllers sharing a hierarchy", `25 20 0:21 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:22 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:23 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
28 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct
29 25 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x
`, []tree{{names: []string{"name=systemd"}, dir: "/sys/fs/cgroup/systemd"}, {names: []string{"cpu", "cpuacct"}, dir: "/sys/fs/cgroup/cpu,cpuacct"},
			{names: []string{"memory"}, dir: "/sys/fs/cgroup/memory"}}, "/sys/fs/cgroup/unified"},
		{"mounted elsewhere, in part, or twice", `27 25 0:23 / /mnt/memory rw - cgroup cgroup rw,memory
28 25 0:23 /docker /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
29 25 0:24 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
30 25 0:24 / /sys/fs/cgroup/again rw - cgroup cgroup rw,pids
31 25 0:26 / /mnt/cgroup2 rw - cgroup2 cgroup2 rw
`, []tree{{names: []string{"pids"}, dir: "/sys/fs/cgroup/pids"}}, ""},
	} {
		trees, unified, err := parseTrees(strings.NewReader(tt.mountinfo))
		if err != nil || unified != tt.unified || !reflect.DeepEqual(trees, tt.trees) {
			t.Errorf("%s: %+v, %q, %v", tt.name, trees, unified, err)
		}
	}
	if _, _, err := parseTrees(strings.NewReader("nonsense\n")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nonsense: %v", err)
	}
}

func TestFromCRI(t *testing.T) {
	got := FromCRI(&runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 1 << 30, CpusetCpus: "0-1", CpusetMems: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}, Unified: map[string]string{"memory.oom.group": "1"},
	})
	want := Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, CPUs: "0-1", Mems: "0", Memory: 1 << 30, MemorySwap: 1 << 30,
		Hugepages: []HugepageLimit{{"2MB", 4 << 20}}, Unified: map[string]string{"memory.oom.group": "1"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := FromCRI(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 2 << 20}); got.MemorySwap != 2<<20 {
		t.Errorf("swap limit %d", got.MemorySwap)
	}
	if d := cmp.Diff(Resources{}, FromCRI(nil)); d != "" {
		t.Error(d)
	}
	if got := FromCRI(&runtimeapi.LinuxContainerResources{}); !got.empty() {
		t.Errorf("nothing asked for gives %+v", got)
	}
}

func TestConvert(t *testing.T) {
	h := &Hierarchy{version: 2, swap: true}
	for shares, weight := range map[uint64]uint64{0: 0, 2: 1, 102: 17, 512: 59, 1024: 100, 262144: 10000} {
		if got := h.convert(Resources{CPUShares: shares}).CpuWeight; got != weight {
			t.Errorf("%d shares are weight %d, want %d", shares, got, weight)
		}
	}
	if got := (&Hierarchy{}).convert(Resources{Memory: 5, MemorySwap: 5}); got.MemorySwap != 0 || got.Memory != 5 {
		t.Errorf("without swap accounting: %+v", got)
	}
	if got := h.convert(Resources{}); got.PidsLimit != nil || !got.SkipDevices {
		t.Errorf("unset: %+v", got)
	}
}

func TestCheck(t *testing.T) {
	v1 := &Hierarchy{version: 1, trees: []tree{{names: []string{"memory"}}}}
	v2 := &Hierarchy{version: 2, swap: true}
	size := "2MB"
	if sizes := cgroups.HugePageSizes(); !slices.Contains(sizes, size) {
		t.Skipf("the kernel has no pages of 2MB, but %v", sizes)
	}
	for _, tt := range []struct {
		h     *Hierarchy
		r     Resources
		words string // "" = fine
	}{
		{v1, Resources{Unified: map[string]string{"memory.high": "1"}}, "unified resources need cgroup v2"},
		{v2, Resources{Unified: map[string]string{"memory.high": "1"}}, ""},
		{v2, Resources{Unified: map[string]string{"../../x.y": "1"}}, `unified resource "../../x.y"`},
		{v2, Resources{Unified: map[string]string{"x": "1"}}, `unified resource "x"`},
		{v2, Resources{Memory: 2, MemorySwap: 1}, "memory_swap_limit_in_bytes 1 is less"},
		{v1, Resources{Memory: 2, MemorySwap: 3}, "no swap accounting"},
		{v1, Resources{Memory: 2, MemorySwap: 2}, ""},
		{v2, Resources{Memory: 2, MemorySwap: 3}, ""},
		{v1, Resources{Hugepages: []HugepageLimit{{size, 1}}}, "hugetlb is missing"},
		{v1, Resources{Hugepages: []HugepageLimit{{size, 0}}}, ""},
		{v2, Resources{Hugepages: []HugepageLimit{{"3MB", 1}}}, `page size "3MB" is not one of the kernel's`},
		{v2, Resources{Hugepages: []HugepageLimit{{"3MB", 0}}}, ""},
	} {
		err := tt.h.check(tt.r)
		if (err == nil) != (tt.words == "") || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%+v on v%d: %v, want %q", tt.r, tt.h.version, err, tt.words)
		}
	}
}

func TestParsePSI(t *testing.T) {
	got := parsePSI([]byte("some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.10 total=7\n"))
	want := &PSI{Some: PSIData{Avg10: 1.5, Avg60: 0.25, TotalNanoseconds: 123000}, Full: PSIData{Avg300: 0.1, TotalNanoseconds: 7000}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"some avg10=x", "some avg10=NaN", "some total=-1", "some total=1.5"} {
		if got := parsePSI([]byte(bad)); got != nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestParseKeys(t *testing.T) {
	got := parseKeys([]byte("a 1\nbb 22\nb 3\nbroken\nc x\nd 18446744073709551615\n"), []string{"b", "a", "c", "missing", "d"})
	if want := []uint64{3, 1, 0, 0, 1<<64 - 1}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestOpen refuses what can't work, saying why.
func TestOpen(t *testing.T) {
	for _, tt := range []struct {
		cfg   Config
		words string
	}{
		{Config{Driver: "docker"}, `cgroup driver "docker": want cgroupfs or systemd`},
		{Config{Driver: DriverCgroupfs, Root: "/"}, "cgroup root"},
		{Config{Driver: DriverCgroupfs, Root: "/a/../.."}, "must not contain .."},
		{Config{Driver: DriverCgroupfs, Root: "system.slice"}, "is a systemd slice, but the cgroup driver is cgroupfs"},
	} {
		h, err := Open(tt.cfg)
		if err == nil {
			h.Close()
		}
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.words)
		}
	}
}
