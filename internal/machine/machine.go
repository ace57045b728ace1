// Package machine describes the machine pods run on, in the terms in which a
// pod's translation asks for it: addresses, memory, resolver, huge pages.
//
// It owns nothing and reads the machine anew at each call; parts that this
// machine doesn't have are empty. Only what a pod can't do without is an
// error.
//
// Floor: 6, over podspec, whose question it answers.
package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/podspec"
)

// Name is the node's name: the host's, in lower case as Kubernetes has it.
func Name() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the machine's name: %w", err)
	}
	return strings.ToLower(name), nil
}

// Describe is the machine as a node; root is where the node keeps its files.
func Describe(root string) (podspec.Node, error) {
	n := podspec.Node{
		HostIPs:       addresses(),
		SeccompRoot:   filepath.Join(root, "seccomp"),
		HugePageSizes: hugePageSizes("/sys/kernel/mm/hugepages"),
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		n.CgroupV2 = true
		// As kubelet's default on cgroup v2.
		n.GroupOOMKill = true
		n.SwapController = exists("/sys/fs/cgroup/*/memory.swap.max")
	} else {
		n.SwapController = exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	}
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return n, fmt.Errorf("the machine's memory: %w", err)
	}
	defer f.Close()
	memory := parseMeminfo(f)
	n.MemoryCapacity, n.SwapCapacity = memory["MemTotal"], memory["SwapTotal"]
	n.Allocatable = v1.ResourceList{
		v1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(n.MemoryCapacity, resource.BinarySI),
	}
	if err := unix.Statfs(root, &st); err == nil {
		n.Allocatable[v1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(st.Bavail)*st.Bsize, resource.BinarySI)
	}
	if n.HostDNS, err = resolver("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"); err != nil {
		return n, err
	}
	return n, nil
}

func exists(pattern string) bool {
	found, err := filepath.Glob(pattern)
	return err == nil && len(found) > 0
}

// addresses are the machine's own: that of the default route first, then one
// of the other family. A machine without a network has its loopback.
func addresses() []string {
	var all []netip.Addr
	if ip, err := utilnet.ChooseHostInterface(); err == nil {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap())
		}
	}
	nets, err := net.InterfaceAddrs()
	if err != nil {
		nets = nil
	}
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.String()); err == nil {
			all = append(all, p.Addr().Unmap())
		}
	}
	return primary(all)
}

// primary takes the first address that others can reach, and the first of the
// other family.
func primary(all []netip.Addr) []string {
	var chosen []netip.Addr
	for _, a := range all {
		if a.IsGlobalUnicast() && (len(chosen) == 0 || len(chosen) == 1 && a.Is4() != chosen[0].Is4()) {
			chosen = append(chosen, a)
		}
	}
	if len(chosen) == 0 {
		return []string{"127.0.0.1"}
	}
	var out []string
	for _, a := range chosen {
		out = append(out, a.String())
	}
	return out
}

// resolver is what pods that use the machine's name servers get. Servers on
// the machine's loopback can't be reached from a pod: where systemd-resolved
// is such a server, its own servers are taken.
func resolver(path, behindStub string) (*runtimeapi.DNSConfig, error) {
	dns, err := readResolver(path)
	if err != nil || !onlyLoopback(dns.GetServers()) {
		return dns, err
	}
	if behind, err := readResolver(behindStub); err == nil && len(behind.GetServers()) > 0 {
		return behind, nil
	}
	return dns, nil
}

func readResolver(path string) (*runtimeapi.DNSConfig, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &runtimeapi.DNSConfig{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dns, err := podspec.ParseResolvConf(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return dns, nil
}

func onlyLoopback(servers []string) bool {
	for _, s := range servers {
		if a, err := netip.ParseAddr(s); err != nil || !a.IsLoopback() {
			return false
		}
	}
	return len(servers) > 0
}

// parseMeminfo reads /proc/meminfo into bytes.
func parseMeminfo(r io.Reader) map[string]int64 {
	all := map[string]int64{}
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			all[strings.TrimSuffix(f[0], ":")] = n * 1024
		}
	}
	return all
}

// hugePageSizes are the sizes the kernel has, as cgroups name them: "2MB".
func hugePageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without
	}
	var sizes []string
	for _, e := range entries {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		switch {
		case err != nil:
		case kb >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kb>>20))
		case kb >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kb>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kb))
		}
	}
	return sizes
}
