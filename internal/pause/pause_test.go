package pause

import (
	"errors"
	"io"
	"testing"

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
		t.Errorf("read %q", got)
	}
	if e := awaitExit(t, c, "sh"); e.Status.ExitStatus() != 3 {
		t.Errorf("status %#x, want exit 3", e.Status)
	}
	release(t, c, "sh")
}

func TestFailingStep(t *testing.T) {
	c := start(t, Config{})
	b := new(blob)
	b.call(unix.SYS_GETPID)
	b.call(unix.SYS_CHDIR, b.str("/does/not/exist"))
	b.exec("/bin/true")
	_, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b})
	var se *stepError
	if !errors.As(err, &se) || se.Step != 1 || se.Errno != unix.ENOENT {
		t.Fatalf("Spawn: %v, want step 1: ENOENT", err)
	}
	children, err := c.Children(testContext(t))
	if err != nil || len(children) != 0 {
		t.Fatalf("Children = %v, %v; want none", children, err)
	}
}
