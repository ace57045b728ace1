package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// appCommand is what a bench's containers run; a process that runs it is the
// pod's own and counts for nothing.
var appCommand = []string{"sleep", "271828182"}

// memory is the proportional set size of every process of the machine.
type memory struct {
	pss     map[int]int64
	runtime int
}

// snapshot measures all processes. The runtime is measured after a garbage
// collection when it is this process.
func snapshot(runtime int) (*memory, error) {
	if runtime == os.Getpid() {
		debug.FreeOSMemory()
	}
	m := &memory{pss: map[int]int64{}, runtime: runtime}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || isApp(cmdline) {
			continue
		}
		rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue // a kernel thread, or one that ended
		}
		m.pss[pid] = pssOf(rollup)
	}
	if runtime != 0 && m.pss[runtime] == 0 {
		return nil, fmt.Errorf("the memory of process %d can't be read (root can)", runtime)
	}
	return m, nil
}

func isApp(cmdline []byte) bool {
	return bytes.Equal(bytes.TrimRight(cmdline, "\x00"), []byte(strings.Join(appCommand, "\x00"))) ||
		bytes.HasSuffix(bytes.TrimRight(cmdline, "\x00"), []byte("\x00"+appCommand[1]))
}

// pssOf reads /proc/PID/smaps_rollup, in bytes.
func pssOf(rollup []byte) int64 {
	for line := range strings.Lines(string(rollup)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64) // the kernel's own
			return kb * 1024
		}
	}
	return 0
}

// since is what the processes that are new use, and what the runtime grew by.
func (m *memory) since(before *memory) int64 {
	var sum int64
	for pid, pss := range m.pss {
		if _, old := before.pss[pid]; !old {
			sum += pss
		}
	}
	if m.runtime != 0 {
		sum += max(m.pss[m.runtime]-before.pss[m.runtime], 0)
	}
	return sum
}
