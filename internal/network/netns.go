package network

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// inNetns runs fn with the calling goroutine's thread in the network namespace
// ns. fn must not start goroutines that care where they are.
func inNetns(ns *os.File, fn func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return &os.PathError{Op: "open", Path: "/proc/thread-self/ns/net", Err: err}
	}
	defer unix.Close(home)
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace %s: %w", ns.Name(), err)
	}
	err = fn()
	if herr := unix.Setns(home, unix.CLONE_NEWNET); herr != nil {
		// The thread stays locked, to serve nobody else in the wrong
		// namespace, and ends with its goroutine.
		return fmt.Errorf("leaving network namespace %s: %w", ns.Name(), herr)
	}
	runtime.UnlockOSThread()
	return err
}

// writeSysctl sets a setting below /proc/sys of the calling thread's network
// namespace. (Two of them are in the way of every pod: package os would make
// each an event source first.)
func writeSysctl(path, value string) error {
	path = "/proc/sys/" + path
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + path)
	return strings.TrimSuffix(string(b), "\n"), err
}
