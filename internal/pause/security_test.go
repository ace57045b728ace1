package pause

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A program in a container has its stdio and nothing else open.
func TestNoDescriptorLeaks(t *testing.T) {
	c := start(t, Config{})
	r, w := pipe(t)
	spawn(t, c, SpawnRequest{ID: "first", Recipe: shell("sleep 1000"), Keep: []*os.File{r, w}})
	b := new(blob)
	b.file(r)
	b.exec("/bin/sleep", "1000")
	p := spawn(t, c, SpawnRequest{ID: "second", Recipe: b, Keep: []*os.File{r, w}, PIDNamespace: nil})
	want := []string{"0 /dev/null", "1 /dev/null", "2 /dev/null"}
	if got := openFiles(t, p.PID); !slices.Equal(got, want) {
		t.Errorf("open in a container: %q, want %q", got, want)
	}
	// pause itself: stdio, listener, connection, signals, itself, what is kept.
	eventually(t, "pause has nothing else open", func() bool { return len(openFiles(t, c.PID())) == 7+4 })
}

// A node that has started and ended pods has nothing left of them.
func TestNodeLeaksNothing(t *testing.T) {
	cycle := func() {
		c, err := Start(testContext(t), Config{Dir: t.TempDir(), Cloneflags: podNamespaces})
		if err != nil {
			t.Fatal(err)
		}
		r, w := pipe(t)
		p, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: exits(0), Keep: []*os.File{r}})
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		w.Close()
		p.Pidfd.Close()
		children, err := c.Children(testContext(t))
		if err != nil || len(children) != 1 {
			t.Fatalf("Children: %v, %v", children, err)
		}
		children[0].close()
		failing := new(blob)
		failing.call(unix.SYS_CHDIR, 1)
		failing.exit(0)
		if _, err := c.Spawn(testContext(t), SpawnRequest{ID: "y", Recipe: failing}); err == nil {
			t.Fatal("no error")
		}
		end(t, c)
	}
	cycle() // what is made once per process
	files, goroutines := len(openFiles(t, os.Getpid())), runtime.NumGoroutine()
	for range 20 {
		cycle()
	}
	// What the last cycle let go of is closed by others.
	eventually(t, "no descriptors are left", func() bool { return len(openFiles(t, os.Getpid())) <= files })
	eventually(t, "no goroutines are left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// Pods cost no threads, however many there are.
func TestManyPods(t *testing.T) {
	threads := func() int {
		n, err := strconv.Atoi(status(os.Getpid(), "Threads"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	start(t, Config{})
	before := threads()
	for i := range 60 {
		c := start(t, Config{})
		spawn(t, c, SpawnRequest{ID: fmt.Sprint(i), Recipe: shell("sleep 1000")})
	}
	if n := threads(); n > before+20 {
		t.Errorf("%d threads with 60 pods, %d before", n, before)
	}
}

// CVE-2019-5736: what a container can reach as the runtime's binary can't be
// written, neither while it runs nor later, and is no file of the host.
func TestProgramIsSealed(t *testing.T) {
	c := start(t, Config{})
	exe := fmt.Sprintf("/proc/%d/exe", c.PID())
	if link, err := os.Readlink(exe); err != nil || link != "/memfd:pause (deleted)" {
		t.Errorf("pause runs from %q, %v", link, err)
	}
	if f, err := os.OpenFile(exe, os.O_RDWR, 0); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("opening it for writing: %v, want ETXTBSY", err)
		f.Close()
	}
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL; err != nil || seals&want != want {
		t.Errorf("seals %#x, %v", seals, err)
	}
	// The trick of 5736: keep it open until nothing executes it any more.
	memfd, err := sealedMemfd("other", []byte(elf), unix.MFD_EXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer memfd.Close()
	rw, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", memfd.Fd()), os.O_RDWR, 0)
	if err == nil {
		if _, err = rw.Write([]byte("evil")); !errors.Is(err, unix.EPERM) {
			t.Errorf("writing to it: %v, want EPERM", err)
		}
		if err := rw.Truncate(0); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncating it: %v, want EPERM", err)
		}
		rw.Close()
	}
	// From inside, with a shared PID namespace and another uid.
	b := new(blob)
	b.call(unix.SYS_SETUID, 1000)
	b.call(unix.SYS_READLINKAT, unix.AT_FDCWD, b.str(exe), b.bytes(make([]byte, 64)), 64)
	b.exit(0)
	var se *stepError
	if _, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b}); !errors.As(err, &se) || se.Step != 1 || se.Errno != unix.EACCES {
		t.Errorf("reading the link as another user: %v, want EACCES", err)
	}
}

// Neither pause nor a child before execve can be traced or dumped by another
// process of the same user.
func TestNonDumpable(t *testing.T) {
	ask := func(w *os.File) *blob {
		b := new(blob)
		answer := b.bytes([]byte{9, 9, 9, 9})
		b.call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		b.steps[0].Store = uint32(answer)
		b.call(unix.SYS_WRITE, b.file(w), answer, 4)
		return b
	}
	r, w := pipe(t)
	c := start(t, Config{Setup: ask(w)})
	child := ask(w)
	child.exit(0)
	spawn(t, c, SpawnRequest{ID: "x", Recipe: child})
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("PR_GET_DUMPABLE in pause and a child: %v, %v; want 0, 0", got, err)
	}
}

func TestSetup(t *testing.T) {
	b := new(blob)
	b.call(unix.SYS_SETHOSTNAME, b.str("the-pod"), 7)
	b.call(unix.SYS_MEMFD_CREATE, b.str("left open"), 0)
	c := start(t, Config{Setup: b})
	if got := runs(t, c, SpawnRequest{ID: "x"}, "hostname"); got != "the-pod" {
		t.Errorf("hostname %q", got)
	}
	if got := strings.Join(openFiles(t, c.PID()), "\n"); strings.Contains(got, "left open") {
		t.Errorf("open in pause:\n%s", got)
	}
}

// A start that fails says which step, and leaves nothing.
func TestStartFails(t *testing.T) {
	requireRoot(t)
	failing := new(blob)
	failing.call(unix.SYS_GETPID)
	failing.call(unix.SYS_CHDIR, failing.str("/does/not/exist"))
	closed, _ := pipe(t)
	closed.Close()
	overlapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 10}, {ContainerID: 5, HostID: 200000, Size: 10}}
	for _, tc := range []struct {
		name string
		cfg  Config
		is   func(error) bool
	}{
		{"step", Config{Setup: failing}, func(err error) bool {
			var se *stepError
			return errors.As(err, &se) && se.Step == 1 && se.Errno == unix.ENOENT
		}},
		{"recipe", Config{Setup: &blob{raw: []byte("no recipe")}}, func(err error) bool { return errors.Is(err, unix.EINVAL) }},
		{"size", Config{Setup: &blob{raw: make([]byte, maxRecipe+1)}}, errdefs.IsInvalidArgument},
		{"file", Config{Setup: &blob{files: []*os.File{closed}}}, func(err error) bool { return errors.Is(err, os.ErrClosed) }},
		{"flags", Config{Cloneflags: unix.CLONE_VM}, errdefs.IsInvalidArgument},
		{"no mapping", Config{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID}, errdefs.IsInvalidArgument},
		{"bad mapping", Config{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID, UIDMap: overlapping, GIDMap: overlapping},
			func(err error) bool { return errors.Is(err, unix.EINVAL) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.cfg
			cfg.Dir = t.TempDir()
			if cfg.Cloneflags == 0 {
				cfg.Cloneflags = podNamespaces
			}
			c, err := Start(testContext(t), cfg)
			if err == nil {
				end(t, c)
			}
			if !tc.is(err) {
				t.Errorf("Start: %v", err)
			}
			if left, _ := os.ReadDir(cfg.Dir); len(left) != 0 {
				t.Errorf("left in the directory: %v", left)
			}
			for _, pid := range childrenOf(t, os.Getpid()) {
				if status(pid, "Name") == "pause" {
					t.Errorf("pause %d is left", pid)
				}
			}
		})
	}
	if _, err := Start(testContext(t), Config{Dir: "/does/not/exist"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}
