package pause

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var devNull = sync.OnceValues(func() (*os.File, error) { return os.OpenFile(os.DevNull, os.O_RDWR, 0) })

// run clones and executes pause. It closes pause's end of the connection,
// conn[1], in any case.
func run(cfg Config, listener int, conn [2]int) (*process, error) {
	if cfg.Cloneflags&unix.CLONE_NEWUSER != 0 {
		return launch(cfg, listener, conn)
	}
	pid, pidfd, err := execute(cfg.Cloneflags, cfg.Cgroup, listener, conn[1])
	unix.Close(conn[1])
	if err != nil {
		return nil, err
	}
	return adopt(pid, pidfd)
}

// adopt makes a child of this process one that is watched.
func adopt(pid, pidfd int) (*process, error) {
	p, err := newProcess(pid, pidfd, true)
	if err != nil {
		unix.Kill(pid, unix.SIGKILL)
		reap(pid)
	}
	return p, err
}

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// execute runs the program with its two sockets. The thread that does it is
// suspended until the program is executed (vfork), and nothing is copied.
func execute(cloneflags uintptr, cgroup *os.File, listener, conn int, arg ...string) (pid, pidfd int, err error) {
	null, err := devNull()
	if err != nil {
		return 0, -1, err
	}
	program, err := program()
	if err != nil {
		return 0, -1, err
	}
	attr := syscall.SysProcAttr{Cloneflags: cloneflags, PidFD: &pidfd}
	if cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
	}
	files := []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(listener), uintptr(conn)}
	if len(arg) > 0 {
		files = append(files, program.Fd())
	}
	// By our own descriptor table, not /proc/self: before it executes, the child
	// moves descriptors about in its copy, and may put one over the program's.
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd())
	pid, err = syscall.ForkExec(path, append([]string{"/pause"}, arg...), &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: files, Sys: &attr,
	})
	return pid, pidfd, err
}

// launch makes a pause in a user namespace: see pause/launch.c.
func launch(cfg Config, listener int, conn [2]int) (*process, error) {
	for _, m := range [][]syscall.SysProcIDMap{cfg.UIDMap, cfg.GIDMap} {
		if !slices.ContainsFunc(m, func(m syscall.SysProcIDMap) bool { return m.ContainerID == 0 && m.Size > 0 }) {
			unix.Close(conn[1])
			return nil, fmt.Errorf("ID mapping %v has no root: %w", m, errdefs.ErrInvalidArgument)
		}
	}
	launcher, fd, err := execute(0, cfg.Cgroup, listener, conn[1], "launch")
	unix.Close(conn[1])
	if err != nil {
		return nil, err
	}
	unix.Close(fd)
	defer reap(launcher) // it ends by itself, at the latest with the connection
	pidfd, err := askLauncher(conn[0], cfg.Cloneflags)
	if err != nil {
		unix.Kill(launcher, unix.SIGKILL)
		return nil, err
	}
	pid, err := pidOf(pidfd)
	if err != nil {
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED, nil)
		unix.Close(pidfd)
		return nil, err
	}
	p, err := adopt(pid, pidfd)
	if err != nil {
		return nil, err
	}
	err = errors.Join(writeMap(pid, "uid_map", cfg.UIDMap), writeMap(pid, "gid_map", cfg.GIDMap))
	if err != nil {
		p.kill()
		<-p.done
		return nil, err
	}
	return p, nil
}

// askLauncher lets the launcher clone pause, and returns its pidfd.
func askLauncher(conn int, cloneflags uintptr) (int, error) {
	req := request{Type: typeLaunch, Cloneflags: uint64(cloneflags)}
	if err := unix.Sendmsg(conn, req.encode(), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return -1, fmt.Errorf("asking the launcher: %w", err)
	}
	b, oob := make([]byte, messageSize), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(conn, b, oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(conn, b, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err == nil && n == 0 {
		err = errors.New("it has ended without an answer")
	}
	if err != nil {
		return -1, fmt.Errorf("the launcher: %w", err)
	}
	m, err := decodeMessage(b[:n])
	if err == nil && m.Error != 0 {
		err = unix.Errno(m.Error)
	}
	if err != nil {
		return -1, fmt.Errorf("cloning into a user namespace: %w", err)
	}
	scms, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(scms) != 1 {
		return -1, fmt.Errorf("the launcher has sent no pidfd: %v", err)
	}
	fds, err := unix.ParseUnixRights(&scms[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("the launcher has sent %d descriptors, not a pidfd: %v", len(fds), err)
	}
	return fds[0], nil
}

// writeMap gives a process its ID mapping; see user_namespaces(7).
func writeMap(pid int, name string, mapping []syscall.SysProcIDMap) error {
	var text strings.Builder
	for _, m := range mapping {
		fmt.Fprintf(&text, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", pid, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(text.String()); err != nil {
		return fmt.Errorf("ID mapping %v: %w", mapping, err)
	}
	return nil
}
