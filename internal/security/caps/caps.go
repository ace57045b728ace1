// Package caps works out the capability sets of container processes, with the
// semantics of containerd's CRI: a default set, the pod's additions and drops
// by name, "ALL" in either, everything for privileged containers.
//
// Pure but for [All], which looks at this process once. Safe for concurrent
// use.
//
// Floor 1. It imports nothing of unipod.
package caps

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// names by number, from include/uapi/linux/capability.h.
var names = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN",
	"CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
	"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaults are what containers get unless told otherwise: containerd's list.
const defaults uint64 = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD |
	1<<unix.CAP_NET_RAW | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE

// Sets are a process's capability sets; bit n is capability n. For a process
// that isn't root, execve empties the effective and permitted ones but for
// the ambient.
type Sets struct {
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
}

// Config is what a container asks for. Names go with or without "CAP_", in
// any case; "ALL" in Add or Drop stands for all.
type Config struct {
	Add, Drop, AddAmbient []string
	Privileged            bool
}

// All is every capability this process may give away: a kernel's newer ones
// are left out if this program doesn't know them, and those that this process
// itself lacks.
var All = sync.OnceValue(func() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0
	}
	return (uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)) & (1<<len(names) - 1)
})

// For works out the sets of a container on this machine.
func For(c Config) (Sets, error) { return c.sets(All()) }

// sets applies, in this order: the default set, or all; additions; drops.
// Drops win, as in containerd. No capability is inheritable unless ambient
// (CVE-2022-24769).
func (c Config) sets(all uint64) (Sets, error) {
	set := defaults & all
	if c.Privileged || hasAll(c.Add) {
		set = all
	}
	if hasAll(c.Drop) {
		set = 0
	}
	add, err := parse("add", c.Add, all)
	if err != nil {
		return Sets{}, err
	}
	drop, err := parse("drop", c.Drop, ^uint64(0))
	if err != nil {
		return Sets{}, err
	}
	ambient, err := parse("add_ambient", c.AddAmbient, all)
	if err != nil {
		return Sets{}, err
	}
	if hasAll(c.AddAmbient) {
		ambient = all
	}
	set = (set | add | ambient) &^ drop
	ambient &= set
	return Sets{Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient}, nil
}

func hasAll(list []string) bool {
	return slices.ContainsFunc(list, func(n string) bool { return strings.EqualFold(n, "ALL") })
}

// parse makes a mask of names other than ALL.
func parse(field string, list []string, available uint64) (uint64, error) {
	var mask uint64
	for _, name := range list {
		if strings.EqualFold(name, "ALL") {
			continue
		}
		n, ok := number(name)
		if !ok {
			return 0, fmt.Errorf("capabilities.%s: unknown capability %q: %w", field, name, errdefs.ErrInvalidArgument)
		}
		if available&(1<<n) == 0 {
			return 0, fmt.Errorf("capabilities.%s: %s is not available on this node: %w", field, names[n], errdefs.ErrFailedPrecondition)
		}
		mask |= 1 << n
	}
	return mask, nil
}

func number(name string) (int, bool) {
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "CAP_") {
		upper = "CAP_" + upper
	}
	n := slices.Index(names[:], upper)
	return n, n >= 0
}

// Names are the names in a set, "CAP_CHOWN" first.
func Names(set uint64) []string {
	var list []string
	for n, name := range names {
		if set&(1<<n) != 0 {
			list = append(list, name)
		}
	}
	return list
}
