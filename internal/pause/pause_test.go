package pause

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestSpawnExitRelease(t *testing.T) {
	c := start(t, Config{})
	r, w := pipe(t)
	b := new(blob)
	out := b.file(w)
	b.call(unix.SYS_WRITE, out, b.str("hello"), 5)
	b.exit(7)
	p := spawn(t, c, SpawnRequest{ID: "one", Recipe: b})
	w.Close()
	if got, _ := io.ReadAll(r); string(got) != "hello" {
		t.Errorf("read %q", got)
	}
	e := awaitExit(t, c, "one")
	if !e.Status.Exited() || e.Status.ExitStatus() != 7 {
		t.Errorf("status %#x, want exit 7", e.Status)
	}
	if e.At.Before(p.StartedAt) {
		t.Errorf("ended %v before it started %v", e.At, p.StartedAt)
	}
	release(t, c, "one")
	if err := c.Release(testContext(t), "one"); !errdefs.IsNotFound(err) {
		t.Errorf("second Release: %v, want not found", err)
	}
}

func TestExecve(t *testing.T) {
	c := start(t, Config{})
	r, w := pipe(t)
	b := new(blob)
	b.call(unix.SYS_DUP3, b.file(w), 1, 0)
	b.exec("/bin/sh", "-c", "echo $$; exit 3")
	spawn(t, c, SpawnRequest{ID: "sh", Recipe: b, Cloneflags: unix.CLONE_NEWPID})
	w.Close()
	if got, _ := io.ReadAll(r); string(got) != "1\n" {
		t.Errorf("PID in its own namespace: read %q", got)
	}
	if e := awaitExit(t, c, "sh"); e.Status.ExitStatus() != 3 {
		t.Errorf("status %#x, want exit 3", e.Status)
	}
}

// Every kind of argument, a stored result, and relocations of both kinds: a
// file's descriptor travels through a struct to the kernel and is read back.
func TestRecipeFeatures(t *testing.T) {
	c := start(t, Config{})
	r, w := pipe(t)
	b := new(blob)
	out := b.file(w)
	line := b.str("via sendfile\n")
	iov := b.bytes(append(make([]byte, 8), 13, 0, 0, 0, 0, 0, 0, 0)) // struct iovec
	b.relocs = append(b.relocs, wireReloc{uint32(iov), 0, uint32(line)})
	pollfd := b.bytes(make([]byte, 8)) // struct pollfd, its fd made by a relocation
	b.relocs = append(b.relocs, wireReloc{uint32(pollfd), 1, uint32(out)})
	stored := b.bytes(make([]byte, 8)) // struct pollfd, its fd stored by a step

	memfd := b.call(unix.SYS_MEMFD_CREATE, b.str("x"), 0)
	b.steps[memfd].Store = uint32(stored)
	b.call(unix.SYS_WRITEV, memfd, iov, 1)
	b.call(unix.SYS_LSEEK, memfd, 0, 0)
	b.call(unix.SYS_SENDFILE, out, memfd, 0, 13)
	b.call(unix.SYS_PPOLL, pollfd, 1, b.bytes(make([]byte, 16)), 0, 0)
	b.call(unix.SYS_WRITE, out, stored, 4)
	b.call(unix.SYS_CHDIR, b.str("/nowhere"))
	b.tolerate(unix.EACCES, unix.ENOENT)
	b.call(unix.SYS_EXECVE, b.str("/no/such/program"), 0, 0)
	b.tolerate(unix.ENOENT)
	b.exec("/bin/true")
	spawn(t, c, SpawnRequest{ID: "x", Recipe: b})
	w.Close()
	got, _ := io.ReadAll(r)
	text, fd, ok := strings.Cut(string(got), "\n")
	if text != "via sendfile" || !ok || len(fd) != 4 || fd[0] < 3 {
		t.Errorf("read %q", got)
	}
	awaitExit(t, c, "x")
}

func TestFailingStep(t *testing.T) {
	c := start(t, Config{})
	for _, tc := range []struct {
		name  string
		step  int
		errno unix.Errno
		build func(*blob)
	}{
		{"chdir", 1, unix.ENOENT, func(b *blob) {
			b.call(unix.SYS_GETPID)
			b.call(unix.SYS_CHDIR, b.str("/does/not/exist"))
			b.exec("/bin/true")
		}},
		{"not this errno", 0, unix.ENOENT, func(b *blob) {
			b.call(unix.SYS_CHDIR, b.str("/does/not/exist"))
			b.tolerate(unix.EPERM, unix.EACCES, unix.EEXIST, unix.EBUSY)
			b.exec("/bin/true")
		}},
		{"execve", 1, unix.EACCES, func(b *blob) {
			b.call(unix.SYS_EXECVE, b.str("/nowhere/true"), 0, 0)
			b.tolerate(unix.ENOENT)
			b.exec("/etc/passwd")
		}},
		{"bad pointer", 0, unix.EFAULT, func(b *blob) {
			b.call(unix.SYS_CHDIR, 1)
			b.exec("/bin/true")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := new(blob)
			tc.build(b)
			_, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b})
			var se *stepError
			if !errors.As(err, &se) || se.Step != tc.step || se.Errno != tc.errno {
				t.Fatalf("Spawn: %v, want step %d: %v", err, tc.step, tc.errno)
			}
			noChildren(t, c)
		})
	}
	select {
	case e := <-c.Exits():
		t.Errorf("exit of a failed spawn: %v", e)
	default:
	}
}

func noChildren(t *testing.T, c *Conn) {
	t.Helper()
	children, err := c.Children(testContext(t))
	if err != nil || len(children) != 0 {
		t.Fatalf("Children = %v, %v; want none", children, err)
	}
}

func TestKilledWhileSetUp(t *testing.T) {
	c := start(t, Config{})
	b := new(blob)
	b.call(unix.SYS_KILL, b.call(unix.SYS_GETPID), int(unix.SIGKILL))
	b.exec("/bin/true")
	_, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b})
	if !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "SIGKILL") {
		t.Fatalf("Spawn: %v, want aborted by SIGKILL", err)
	}
	noChildren(t, c)
}

func TestSpawnGivenUp(t *testing.T) {
	c := start(t, Config{})
	r, w := pipe(t)
	b := new(blob)
	b.call(unix.SYS_READ, b.file(r), b.bytes(make([]byte, 8)), 1) // for ever
	b.exec("/bin/true")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Spawn(ctx, SpawnRequest{ID: "x", Recipe: b}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Spawn: %v, want the deadline", err)
	}
	eventually(t, "the child is gone", func() bool {
		children, err := c.Children(testContext(t))
		return err == nil && len(children) == 0
	})
	w.Close()
	spawn(t, c, SpawnRequest{ID: "x", Recipe: b})
	awaitExit(t, c, "x")

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Spawn(canceled, SpawnRequest{ID: "y", Recipe: b}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Spawn: %v, want canceled", err)
	}
}

func TestMisuse(t *testing.T) {
	c := start(t, Config{})
	ctx := testContext(t)
	r, _ := pipe(t)
	many := func(n int) []*os.File {
		var files []*os.File
		for range n {
			files = append(files, r)
		}
		return files
	}
	ok := shell("true")
	for _, tc := range []struct {
		name string
		req  SpawnRequest
		is   func(error) bool
	}{
		{"no ID", SpawnRequest{Recipe: ok}, errdefs.IsInvalidArgument},
		{"long ID", SpawnRequest{ID: strings.Repeat("x", 65), Recipe: ok}, errdefs.IsInvalidArgument},
		{"zero in ID", SpawnRequest{ID: "a\x00b", Recipe: ok}, errdefs.IsInvalidArgument},
		{"no recipe", SpawnRequest{ID: "x"}, errdefs.IsInvalidArgument},
		{"CLONE_VM", SpawnRequest{ID: "x", Recipe: ok, Cloneflags: unix.CLONE_VM}, errdefs.IsInvalidArgument},
		{"much to keep", SpawnRequest{ID: "x", Recipe: ok, Keep: many(maxKeep + 1)}, errdefs.IsInvalidArgument},
		{"many files", SpawnRequest{ID: "x", Recipe: &blob{files: many(maxStash - 1)}}, errdefs.IsInvalidArgument},
		{"huge recipe", SpawnRequest{ID: "x", Recipe: &blob{raw: make([]byte, maxRecipe+1)}}, errdefs.IsInvalidArgument},
		{"not a PID namespace", SpawnRequest{ID: "x", Recipe: ok, PIDNamespace: r}, func(err error) bool { return errors.Is(err, unix.EINVAL) }},
		{"not a cgroup", SpawnRequest{ID: "x", Recipe: ok, Cgroup: r}, func(err error) bool { return errors.Is(err, unix.EBADF) }},
	} {
		if _, err := c.Spawn(ctx, tc.req); err == nil || !tc.is(err) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := c.Release(ctx, "x"); !errdefs.IsNotFound(err) {
		t.Errorf("Release of an unknown child: %v", err)
	}
	spawn(t, c, SpawnRequest{ID: "x", Recipe: shell("sleep 1000")})
	if _, err := c.Spawn(ctx, SpawnRequest{ID: "x", Recipe: ok}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Spawn of an ID in use: %v", err)
	}
	if err := c.Release(ctx, "x"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Release of a running child: %v", err)
	}
	children, err := c.Children(ctx)
	if err != nil || len(children) != 1 {
		t.Fatalf("Children = %v, %v; want one", children, err)
	}
	children[0].close()
}

// More descriptors than fit in one message.
func TestManyFiles(t *testing.T) {
	c := start(t, Config{})
	r, w := pipe(t)
	b := new(blob)
	for range 600 {
		b.file(r)
	}
	b.call(unix.SYS_WRITE, b.file(w), b.str("x"), 1)
	b.exit(0)
	spawn(t, c, SpawnRequest{ID: "x", Recipe: b, Keep: []*os.File{w}})
	awaitExit(t, c, "x")
	if n := len(openFiles(t, c.PID())); n > 20 {
		t.Errorf("pause has %d descriptors open", n)
	}
	w.Close()
	release(t, c, "x") // closes the last copy of w
	if got, err := io.ReadAll(r); string(got) != "x" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(dir, e.Name()))
		list = append(list, e.Name()+" "+target)
	}
	return list
}

func TestManyChildren(t *testing.T) {
	c := start(t, Config{})
	const running = 1100
	for i := range running {
		b := new(blob)
		b.exec("/bin/sleep", "10000")
		p, err := c.Spawn(testContext(t), SpawnRequest{ID: fmt.Sprint("run", i), Recipe: b})
		if err != nil {
			t.Fatal(err)
		}
		p.Pidfd.Close()
	}
	b := new(blob)
	b.exit(0)
	var err error
	ended := 0
	for ; err == nil; ended++ {
		var p *Process
		if p, err = c.Spawn(testContext(t), SpawnRequest{ID: fmt.Sprint("end", ended), Recipe: b}); err == nil {
			p.Pidfd.Close()
		}
	}
	ended--
	if !errdefs.IsResourceExhausted(err) || running+ended != 2048 {
		t.Fatalf("after %d running and %d ended children: %v", running, ended, err)
	}
	children, err := c.Children(testContext(t))
	if err != nil || len(children) != running+ended {
		t.Fatalf("%d children, %v", len(children), err)
	}
	for i := range children {
		children[i].close()
	}
	for range ended {
		e := <-c.Exits()
		release(t, c, e.ID)
	}
	spawn(t, c, SpawnRequest{ID: "again", Recipe: b})
	awaitExit(t, c, "again")
}

// Many spawns at a time over one connection, half of them failing.
func TestPipelined(t *testing.T) {
	c := start(t, Config{})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			b := new(blob)
			if i%2 == 0 {
				b.call(unix.SYS_CHDIR, b.str("/does/not/exist"))
			}
			b.exec("/bin/true")
			p, err := c.Spawn(testContext(t), SpawnRequest{ID: fmt.Sprint(i), Recipe: b})
			if failed := errors.Is(err, unix.ENOENT); failed != (i%2 == 0) {
				t.Errorf("%d: %v", i, err)
			}
			if err == nil {
				p.Pidfd.Close()
			}
		})
	}
	seen := map[string]bool{}
	for range 20 {
		e := <-c.Exits()
		if seen[e.ID] {
			t.Errorf("exit of %s came twice", e.ID)
		}
		seen[e.ID] = true
		release(t, c, e.ID)
	}
	wg.Wait()
	noChildren(t, c)
}
