package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that is put into groups.
func TestMain(m *testing.M) {
	switch os.Getenv("CGROUP_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "sleep":
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "eat":
		var hoard [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			hoard = append(hoard, b)
			sink.Store(int64(len(hoard)))
		}
	case "device":
		_, err := os.OpenFile(os.Getenv("CGROUP_TEST_DEVICE"), os.O_RDWR, 0)
		var errno syscall.Errno
		errors.As(err, &errno)
		fmt.Println(int(errno))
	case "burn":
		fmt.Println("ready")
		for n := 0; ; n++ {
			sink.Store(int64(n))
		}
	}
}

// sink keeps what the helpers do from being optimised away.
var sink atomic.Int64

// open returns the machine's control groups with a root of the test's own.
func open(t testing.TB) *Hierarchy {
	t.Helper()
	h, err := Open(Config{Driver: DriverCgroupfs, Root: fmt.Sprintf("/unipod-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g := &Group{h: h, path: h.root}
		if err := g.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if g.Exists() {
			t.Errorf("left behind: %v", g.Paths())
		}
	})
	return h
}

func makePod(t testing.TB, h *Hierarchy, r Resources) *Group {
	t.Helper()
	g, err := h.Pod("", "pod1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(r); err != nil {
		t.Fatal(err)
	}
	return g
}

func makeContainer(t testing.TB, pod *Group, id string, r Resources) *Group {
	t.Helper()
	g, err := pod.Child(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(r); err != nil {
		t.Fatal(err)
	}
	return g
}

// command is a shell script to be run in g, placed as pause places a
// container: cloned into Dir, and writing "0" to Procs before anything else.
func command(t testing.TB, g *Group, script string, args ...string) *exec.Cmd {
	t.Helper()
	dir, err := g.Dir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	procs, err := g.Procs()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(procs) })
	enter := ""
	for i := range procs {
		enter += fmt.Sprintf("echo 0 >&%d || exit 99; ", 3+i)
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", enter + script}, args...)...)
	cmd.ExtraFiles = procs
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd
}

// child is this binary as mode (see TestMain), to be run in g.
func child(t testing.TB, g *Group, mode string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, g, `exec "$0"`, self)
	cmd.Env = append(append(os.Environ(), "CGROUP_TEST_CHILD="+mode), env...)
	return cmd
}

// start starts a child that the test's end kills.
func start(t testing.TB, g *Group, mode string) *exec.Cmd {
	t.Helper()
	cmd := child(t, g, mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if mode == "sleep" || mode == "burn" {
		buf := make([]byte, 16)
		if n, err := out.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
			t.Fatalf("child: %q, %v", buf[:n], err)
		}
	}
	return cmd
}

// where reads a process's groups: by controller on v1, "" on cgroup2.
func where(t testing.TB, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for name := range strings.SplitSeq(f[1], ",") {
			m[name] = f[2]
		}
	}
	return m
}
