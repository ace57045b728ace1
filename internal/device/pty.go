package device

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// ttyGroup owns terminals on every distribution.
const ttyGroup = 5

// Devpts makes a container's own pseudo-terminal file system, detached. The
// maps are those of its user namespace, none for the host's.
func Devpts(gidMap []syscall.SysProcIDMap) (*os.File, error) {
	options := []sys.Option{{Key: "newinstance"}, {Key: "ptmxmode", Value: "0666"}, {Key: "mode", Value: "0620"}}
	// A namespace too small for the group has terminals of their user's.
	if gid, ok := lookupID(gidMap, ttyGroup); ok {
		options = append(options, sys.Option{Key: "gid", Value: strconv.Itoa(gid)})
	}
	f, err := sys.NewMount("devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, options...)
	if err != nil {
		return nil, fmt.Errorf("making /dev/pts: %w", err)
	}
	return f, nil
}

// OpenPTY makes a terminal in the devpts instance and opens both its ends.
// No path is looked up for the container's end: it comes from the master's
// descriptor, so no one can put another file in its place (CVE-2025-52565).
func OpenPTY(devpts *os.File) (master, slave *os.File, err error) {
	fd, err := unix.Openat(int(devpts.Fd()), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a terminal: %w", &os.PathError{Op: "openat", Path: "/dev/pts/ptmx", Err: err})
	}
	// Non-blocking, so that reads wait in Go's poller and Close ends them.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("making a terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/pts/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlocking a terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("opening a terminal: TIOCGPTPEER: %w", errno)
	}
	return master, os.NewFile(peer, "/dev/pts/N"), nil
}
