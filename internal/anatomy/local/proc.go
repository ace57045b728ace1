package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"unipod.dev/unipod/internal/anatomy"
)

// namespaceTypes are the kinds shown, as /proc/PID/ns names them.
var namespaceTypes = []string{"net", "uts", "ipc", "pid", "mnt", "user", "cgroup"}

// proc is one process by its directory in procfs. Reads fail when the process
// has ended, even if its number is in use again.
type proc struct {
	pid int
	dir *os.Root
}

func openProc(pid int) (*proc, error) {
	dir, err := os.OpenRoot(filepath.Join("/proc", strconv.Itoa(pid)))
	if err != nil {
		return nil, err
	}
	return &proc{pid, dir}, nil
}

func (p *proc) close() { p.dir.Close() }

// in reports whether the process belongs to the control group at path or
// below: that it is what a record says and not a later bearer of its number.
func (p *proc) in(path string) bool {
	b, err := p.dir.ReadFile("cgroup")
	if err != nil || path == "" {
		return false
	}
	// In a nested environment the line begins with the outer group's path.
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && strings.Contains(parts[2]+"/", path+"/") {
			return true
		}
	}
	return false
}

// namespaces are the inodes of the process's namespaces by type.
func (p *proc) namespaces() (map[string]uint64, error) {
	all := map[string]uint64{}
	for _, typ := range namespaceTypes {
		link, err := p.dir.Readlink("ns/" + typ)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without it
		}
		if err != nil {
			return nil, err
		}
		inode, err := parseNamespace(link)
		if err != nil {
			return nil, err
		}
		all[typ] = inode
	}
	return all, nil
}

// parseNamespace reads "net:[4026531840]".
func parseNamespace(link string) (uint64, error) {
	_, number, ok := strings.Cut(link, ":[")
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("%q isn't a namespace", link)
	}
	return inode, nil
}

// describe is the process as anatomy shows it. pod and host are the
// namespaces of pause and of the host; pod is nil for pause itself.
func (p *proc) describe(pod, host map[string]uint64) (*anatomy.Process, error) {
	status, err := p.dir.ReadFile("status")
	if err != nil {
		return nil, err
	}
	out := &anatomy.Process{PID: p.pid}
	out.UID, out.InPod = parseStatus(status)
	if b, err := p.dir.ReadFile("cmdline"); err == nil {
		out.Command = parseCmdline(b)
	}
	if b, err := p.dir.ReadFile("smaps_rollup"); err == nil {
		out.Memory = field(b, "Pss:") * 1024
	}
	all, err := p.namespaces()
	if err != nil {
		return nil, err
	}
	for _, typ := range namespaceTypes {
		inode, ok := all[typ]
		if !ok {
			continue
		}
		ns := anatomy.Namespace{Type: typ, Inode: inode}
		switch inode {
		case host[typ]:
			ns.Shared = "host"
		case pod[typ]:
			ns.Shared = "pod"
		}
		out.Namespaces = append(out.Namespaces, ns)
	}
	return out, nil
}

// parseStatus reads the effective user and the numbers a process has in the
// PID namespaces inside the host's.
func parseStatus(status []byte) (uid uint32, inside []int) {
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		switch {
		case name == "Uid" && len(fields) > 1:
			n, _ := strconv.ParseUint(fields[1], 10, 32) // the kernel's own
			uid = uint32(n)
		case name == "NSpid" && len(fields) > 1:
			for _, f := range fields[1:] {
				n, _ := strconv.Atoi(f)
				inside = append(inside, n)
			}
		}
	}
	return uid, inside
}

// parseCmdline splits a command line. A process may write anything there; it
// is cut at 4096 bytes.
func parseCmdline(b []byte) []string {
	b = bytes.TrimRight(b[:min(len(b), 4096)], "\x00")
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// field is the number after a label in a file of "Label: number" lines.
func field(b []byte, label string) uint64 {
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == label {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// children are the direct children of a process, in order of their numbers.
func (p *proc) children() []int {
	var all []int
	tasks, err := p.dir.Open("task")
	if err != nil {
		return nil
	}
	defer tasks.Close()
	names, _ := tasks.Readdirnames(-1) // of a process that may end meanwhile
	for _, t := range names {
		b, err := p.dir.ReadFile("task/" + t + "/children")
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, n)
			}
		}
	}
	slices.Sort(all)
	return all
}
