package pause

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever numbers the node's descriptors have, pause is what is executed.
// Before a clone executes, Go moves descriptors about in the clone's copy of
// the table, above the highest that is passed: here that is the program's
// place.
func TestExecuteWithTheProgramAboveThePassed(t *testing.T) {
	if os.Getenv("UNIPOD_TEST_FRESH") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "UNIPOD_TEST_FRESH=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("in a process that has not used the program yet: %v\n%s", err, out)
		}
		return
	}
	// Give the program a high number, and free the lower ones again.
	null, err := devNull()
	if err != nil {
		t.Fatal(err)
	}
	var low []int
	for range 50 {
		fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		low = append(low, fd)
	}
	p, err := program()
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range low {
		unix.Close(fd)
	}
	conn := int(p.Fd()) - 1
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	if err := unix.Dup3(pair[1], conn, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[1])
	defer unix.Close(conn)
	pid, pidfd, err := execute(0, nil, pair[0], conn)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pidfd)
	unix.Kill(pid, unix.SIGKILL)
	reap(pid)
}
