package machine

import (
	"bufio"
	"cmp"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are what a Node object tells of its machine. What the machine doesn't
// say is empty or zero.
type Facts struct {
	MachineID, SystemUUID, BootID string
	Kernel, OSImage               string
	CPUs                          int
	Memory, Swap                  int64            // in bytes
	Disk                          int64            // size of root's file system, in bytes
	HugePages                     map[string]int64 // bytes reserved, by size in bytes as Kubernetes writes it: "2Mi"
}

// Know finds the facts; root is where the node keeps its files.
func Know(root string) Facts {
	first := func(paths ...string) string {
		for _, p := range paths {
			if text, err := os.ReadFile(p); err == nil {
				if s := strings.TrimSpace(string(text)); s != "" {
					return s
				}
			}
		}
		return ""
	}
	f := Facts{
		MachineID: first("/etc/machine-id", "/var/lib/dbus/machine-id"),
		BootID:    first("/proc/sys/kernel/random/boot_id"),
		Kernel:    first("/proc/sys/kernel/osrelease"),
		OSImage:   osImage("/etc/os-release", "/usr/lib/os-release"),
		CPUs:      runtime.NumCPU(),
		HugePages: hugePages("/sys/kernel/mm/hugepages"),
	}
	f.SystemUUID = strings.ToLower(first("/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid", "/etc/machine-id"))
	if m, err := os.Open("/proc/meminfo"); err == nil {
		memory := parseMeminfo(m)
		m.Close()
		f.Memory, f.Swap = memory["MemTotal"], memory["SwapTotal"]
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err == nil {
		f.Disk = int64(st.Blocks) * st.Bsize
	}
	return f
}

// osImage is the system's own name for itself.
func osImage(paths ...string) string {
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if name, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
				if unquoted, err := strconv.Unquote(name); err == nil {
					return unquoted
				}
				return strings.Trim(name, `'"`)
			}
		}
	}
	return "Linux"
}

// hugePages are the huge pages set aside, by size.
func hugePages(dir string) map[string]int64 {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without
	}
	pages := map[string]int64{}
	for _, e := range entries {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name(), "nr_hugepages"))
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			continue
		}
		size := strconv.FormatInt(cmp.Or(kb>>20, kb>>10), 10) + map[bool]string{true: "Gi", false: "Mi"}[kb>>20 > 0]
		if kb < 1<<10 {
			size = strconv.FormatInt(kb, 10) + "Ki"
		}
		pages[size] = n * kb << 10
	}
	return pages
}
