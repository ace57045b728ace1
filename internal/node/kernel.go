package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// voidAfterReboot empties run when it is from before the machine's last boot:
// on a tmpfs the reboot has done that, but not every machine's /run is one.
func voidAfterReboot(run string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("asking which boot this is: %w", err)
	}
	file := filepath.Join(run, "boot-id")
	switch had, err := os.ReadFile(file); {
	case err == nil && bytes.Equal(had, boot):
		return nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case err == nil:
		entries, err := os.ReadDir(run)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(run, e.Name())); err != nil {
				return fmt.Errorf("removing what is left of before the reboot: %w", err)
			}
		}
	}
	return os.WriteFile(file, boot, 0o600)
}
