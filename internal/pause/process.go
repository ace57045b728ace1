package pause

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// process is a pause process, held by pidfd.
type process struct {
	pid   int
	pidfd *os.File      // non-blocking, in the runtime's poller
	child bool          // of this node process, which then has to reap it
	done  chan struct{} // closed when it has ended (and was reaped)
}

// newProcess takes over pidfd and watches it.
func newProcess(pid, pidfd int, child bool) (*process, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("pidfd of pause: %w", err)
	}
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd of pause"), child: child, done: make(chan struct{})}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return nil, fmt.Errorf("pidfd of pause: %w", err)
	}
	go func() {
		if err := raw.Read(p.ended); err == nil {
			close(p.done)
			p.pidfd.Close()
		}
	}()
	return p, nil
}

// ended says whether the process at pidfd has ended, and reaps it.
func (p *process) ended(pidfd uintptr) bool {
	if !readable(int(pidfd)) {
		return false
	}
	if p.child {
		// It can only fail if somebody else has reaped it.
		for unix.Waitid(unix.P_PIDFD, int(pidfd), nil, unix.WEXITED, nil) == unix.EINTR {
		}
	}
	return true
}

// forget stops watching a process that isn't ours to reap.
func (p *process) forget() {
	if !p.child {
		p.pidfd.Close()
	}
}

func (p *process) kill() error {
	_, err := fileNumber(p.pidfd, func(fd int) (int, error) {
		return 0, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	})
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	select {
	case <-p.done: // why pidfd is closed
		return nil
	default:
		return err
	}
}

func readable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// pidOf reads from a pidfd which process of our PID namespace it means; 0 if it
// has been reaped. See pidfd_open(2) for the field.
func pidOf(pidfd int) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(info, []byte("\nPid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	if !ok {
		return 0, fmt.Errorf("descriptor %d is not a pidfd", pidfd)
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(line)))
	return max(pid, 0), err
}
