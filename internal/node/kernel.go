package node

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// minimumKernel is the oldest that has everything pods are made of; the
// newest part is cgroup.kill.
const minimumKernel = "5.14"

// checkKernel asks for what pods are made of instead of comparing version
// numbers: distributions backport.
func checkKernel() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("unipod needs root to make namespaces, mounts and cgroups; run it with sudo: %w", errdefs.ErrPermissionDenied)
	}
	for _, probe := range []struct {
		call string
		nr   uintptr
	}{
		{"clone3", unix.SYS_CLONE3}, {"openat2", unix.SYS_OPENAT2}, {"close_range", unix.SYS_CLOSE_RANGE},
		{"fsopen", unix.SYS_FSOPEN}, {"open_tree", unix.SYS_OPEN_TREE}, {"move_mount", unix.SYS_MOVE_MOUNT},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR}, {"pidfd_open", unix.SYS_PIDFD_OPEN},
	} {
		// Arguments that every version refuses before doing anything.
		_, _, errno := unix.Syscall6(probe.nr, ^uintptr(0), 0, 0, ^uintptr(0), 0, 0)
		if errors.Is(errno, unix.ENOSYS) {
			var u unix.Utsname
			unix.Uname(&u)
			return fmt.Errorf("this kernel (%s) is too old: it lacks %s; unipod needs Linux %s or newer: %w",
				unix.ByteSliceToString(u.Release[:]), probe.call, minimumKernel, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
