package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// appCommand is what a bench's containers run; a process that runs it is the
// pod's own and counts for nothing.
var appCommand = []string{"sleep", "271828182"}

// runtimeMemory is the proportional set size of the runtime's process; it is
// measured after a garbage collection when it is this one.
func runtimeMemory(pid int) (int64, error) {
	if pid == 0 {
		return 0, nil
	}
	if pid == os.Getpid() {
		debug.FreeOSMemory()
	}
	rollup, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, fmt.Errorf("the runtime's memory: %w", err)
	}
	return fieldOf(rollup, "Pss:"), nil
}

// residentMemory is the resident set size of a process.
func residentMemory(pid int) (int64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, fmt.Errorf("the runtime's memory: %w", err)
	}
	return fieldOf(status, "VmRSS:"), nil
}

// podMemory is the proportional set size of the processes that belong to
// sandboxes, by the sandbox's ID in their control group (a pause process) or
// command line (a shim), but for the containers' own.
func podMemory(sandboxes []string) (int64, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || isApp(cmdline) {
			continue
		}
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil {
			continue // it has ended
		}
		if !slices.ContainsFunc(sandboxes, func(id string) bool { return bytes.Contains(cmdline, []byte(id)) || bytes.Contains(groups, []byte(id)) }) {
			continue
		}
		rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue
		}
		sum += fieldOf(rollup, "Pss:")
	}
	return sum, nil
}

func isApp(cmdline []byte) bool {
	return bytes.Equal(bytes.TrimRight(cmdline, "\x00"), []byte(strings.Join(appCommand, "\x00"))) ||
		bytes.HasSuffix(bytes.TrimRight(cmdline, "\x00"), []byte("\x00"+appCommand[1]))
}

// fieldOf reads a figure of /proc/PID/smaps_rollup or status, in bytes.
func fieldOf(file []byte, name string) int64 {
	for line := range strings.Lines(string(file)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name {
			kb, _ := strconv.ParseInt(f[1], 10, 64) // the kernel's own
			return kb * 1024
		}
	}
	return 0
}
