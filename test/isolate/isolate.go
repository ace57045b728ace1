// Package isolate moves a test binary into namespaces of its own, so that what
// its tests make is seen by nobody and what they forget goes with them.
//
// It is called by TestMain, before anything else runs in the process. Floor:
// none; only tests import it.
package isolate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside says that this process is the one in the new namespaces. Processes
// that the tests start inherit it, as they do the namespaces.
const inside = "UNIPOD_TEST_INSIDE"

// Namespaces goes on only in a process that has new namespaces: the first one
// runs the same program in them, waits for it, and exits with its code. The
// flags are CLONE_NEWNET and CLONE_NEWNS; it needs root.
func Namespaces(flags uintptr) {
	if os.Getenv(inside) == "" {
		os.Exit(again(flags))
	}
	if err := setUp(flags); err != nil {
		fmt.Fprintln(os.Stderr, "setting up the tests' namespaces:", err)
		os.Exit(1)
	}
}

// Network runs a package's tests, all of which need one, in a network namespace
// that is all the process's. Who isn't root is told that they are skipped.
func Network(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: network namespaces need root")
		os.Exit(0)
	}
	Namespaces(unix.CLONE_NEWNET)
	os.Exit(m.Run())
}

func again(flags uintptr) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "running the tests in namespaces of their own (it needs root):", err)
		return 1
	}
	return 0
}

func setUp(flags uintptr) error {
	if flags&unix.CLONE_NEWNS != 0 {
		// Shared, as a systemd host has it: propagation is among what is tested.
		for _, flag := range []uintptr{unix.MS_REC | unix.MS_PRIVATE, unix.MS_REC | unix.MS_SHARED} {
			if err := unix.Mount("", "/", "", flag, ""); err != nil {
				return fmt.Errorf("the mounts' propagation: %w", err)
			}
		}
	}
	if flags&unix.CLONE_NEWNET != 0 {
		return loopbackUp()
	}
	return nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}
