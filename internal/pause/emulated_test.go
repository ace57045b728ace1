package pause

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// System calls of arm64 (include/uapi/asm-generic/unistd.h).
const (
	arm64Chdir        = 49
	arm64Lseek        = 62
	arm64Write        = 64
	arm64Writev       = 66
	arm64Sendfile     = 71
	arm64ExitGroup    = 94
	arm64ClockGettime = 113
	arm64Getpid       = 172
	arm64MemfdCreate  = 279
)

// startEmulated runs the arm64 program under qemu-user, as Start would run it.
// qemu-user can't emulate clone3, and passes namespaces on to the real kernel;
// so this covers the entry point, the system call stubs, the main loop, all
// messages and the interpreter (in SETUP), but not the life of children.
func startEmulated(t *testing.T) *Conn {
	t.Helper()
	if runtime.GOARCH == "arm64" {
		t.Skip("every other test runs the arm64 program here")
	}
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("needs qemu-aarch64-static (Debian: qemu-user-static):", err)
	}
	program, err := filepath.Abs("pause_linux_arm64")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip("needs the arm64 program (make -C pause, with gcc-aarch64-linux-gnu):", err)
	}
	_, listener, pair := sockets(t)
	defer unix.Close(pair[1])
	null, err := devNull()
	if err != nil {
		t.Fatal(err)
	}
	pidfd := -1
	pid, err := syscall.ForkExec(qemu, []string{qemu, program}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{null.Fd(), null.Fd(), 2, uintptr(listener), uintptr(pair[1])},
		Sys:   &syscall.SysProcAttr{PidFD: &pidfd},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProcess(pid, pidfd, true)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConn(pair[0], p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, c) })
	return c
}

func TestARM64(t *testing.T) {
	c := startEmulated(t)
	r, w := pipe(t)
	b := new(blob)
	out := b.file(w)
	line := b.str("via sendfile\n")
	iov := b.bytes(append(make([]byte, 8), 13, 0, 0, 0, 0, 0, 0, 0))
	b.relocs = append(b.relocs, wireReloc{uint32(iov), 0, uint32(line)})
	stored := b.bytes(make([]byte, 8))
	copied := b.bytes(make([]byte, 8))
	b.relocs = append(b.relocs, wireReloc{uint32(copied), 1, uint32(out)})
	memfd := b.call(arm64MemfdCreate, b.str("x"), 0)
	b.steps[memfd].Store = uint32(stored)
	b.call(arm64Writev, memfd, iov, 1)
	b.call(arm64Lseek, memfd, 0, 0)
	b.call(arm64Sendfile, out, memfd, 0, 13)
	b.call(arm64Write, out, stored, 4)
	b.call(arm64Write, out, copied, 4)
	b.call(arm64Chdir, b.str("/nowhere"))
	b.tolerate(unix.ENOENT)
	b.call(arm64ClockGettime, unix.CLOCK_REALTIME, b.bytes(make([]byte, 16)))

	if err := c.prepare(testContext(t), Config{Setup: b}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil || len(got) != 13+4+4 || string(got[:13]) != "via sendfile\n" || got[13] < 5 || got[17] < 5 || got[13] == got[17] {
		t.Errorf("read %q, %v", got, err)
	}
	if c.Version() != protocolVersion {
		t.Errorf("version %d", c.Version())
	}
	noChildren(t, c)
	if err := c.Release(testContext(t), "x"); err == nil {
		t.Error("Release of an unknown child: no error")
	}
	if err := c.prepare(testContext(t), Config{}); !errors.Is(err, unix.EALREADY) {
		t.Errorf("a second SETUP: %v, want EALREADY", err)
	}

	spawned := new(blob)
	spawned.call(arm64Getpid)
	spawned.call(arm64ExitGroup, 7)
	_, err = c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: spawned})
	switch {
	case errors.Is(err, unix.ENOSYS):
		t.Log("qemu-user has no clone3: the life of children isn't tested on arm64")
	case err != nil:
		t.Errorf("Spawn: %v", err)
	default:
		if e := awaitExit(t, c, "x"); e.Status.ExitStatus() != 7 {
			t.Errorf("status %#x, want exit 7", e.Status)
		}
	}
	if _, err := c.Children(testContext(t)); err != nil {
		t.Errorf("pause doesn't answer any more: %v", err)
	}
	unix.Kill(c.PID(), unix.SIGTERM)
	<-c.Done()
}

func TestARM64FailingSetup(t *testing.T) {
	c := startEmulated(t)
	b := new(blob)
	b.call(arm64Getpid)
	b.call(arm64Chdir, b.str("/does/not/exist"))
	var se *stepError
	if err := c.prepare(testContext(t), Config{Setup: b}); !errors.As(err, &se) || se.Step != 1 || se.Errno != unix.ENOENT {
		t.Errorf("SETUP: %v, want step 1: ENOENT", err)
	}
	spoiled := &blob{raw: b.Encode()}
	spoiled.raw[32+8*3] ^= 0xff
	spoiled.raw = spoiled.raw[:len(spoiled.raw)-8]
	if err := c.prepare(testContext(t), Config{Setup: spoiled}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SETUP with a malformed recipe: %v, want EINVAL", err)
	}
	c.Close()
	<-c.Done() // its creator is gone before it was set up
}
