// Package security has the defaults that hide the host from containers. The
// packages below it each own one of the kernel's means to confine a process:
// capabilities, seccomp, AppArmor, SELinux, sysctls, users.
//
// Floor 1. It imports nothing of unipod.
package security

import (
	"path/filepath"
	"slices"
	"sync"
)

// masked are paths of procfs and sysfs that tell about the host or reach into
// it; the list is containerd's.
var masked = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
}

// MaskedPaths are the paths a container doesn't see unless its procMount is
// Unmasked, on this machine: with the processors' thermal throttling counters,
// which leak what else the host is doing.
func MaskedPaths() []string { return slices.Clone(maskedHere()) }

var maskedHere = sync.OnceValue(func() []string {
	throttle, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	if err != nil {
		return masked
	}
	return append(slices.Clone(masked), throttle...)
})

// ReadonlyPaths are the paths a container can't write to unless its procMount
// is Unmasked.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
