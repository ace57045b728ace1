package runtime

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A node that is replaced finds its pods as they are: what runs, what ended
// meanwhile and how, and every line that was written.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	p := w.pod("r")
	running := p.start("running", []string{"sh", "-c", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done"})
	ending := p.start("ending", []string{"sh", "-c", "sleep 0.5; echo bye; exit 7"})
	created, err := p.create("created", []string{"sh", "-c", "echo late"})
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	time.Sleep(time.Second)
	w.open()
	if st := w.status(running); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("running is %s", st.State)
	}
	st := w.wait(ending)
	if st.ExitCode != 7 || st.FinishedAt-st.StartedAt > int64(900*time.Millisecond) {
		t.Errorf("ended with %d after %s", st.ExitCode, time.Duration(st.FinishedAt-st.StartedAt))
	}
	if out := w.output(ending); out != "bye\n" {
		t.Errorf("its log: %q", out)
	}
	if out, code := w.exec(running, "echo", "in"); code != 0 || out != "in\n" {
		t.Errorf("exec after the restart: %q, %d", out, code)
	}
	if _, err := w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
		t.Errorf("starting what was created before: %v", err)
	} else if st := w.wait(created); st.ExitCode != 0 || w.output(created) != "late\n" {
		t.Errorf("it ended with %d", st.ExitCode)
	}
	if _, err := w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: running}); err != nil {
		t.Fatal(err)
	}
	checkSequence(t, w.output(running))
	w.clear()
	w.restart()
	if n := len(w.allSandboxes()) + len(w.allContainers()); n != 0 {
		t.Errorf("%d sandboxes and containers after all were removed", n)
	}
	for _, dir := range []string{w.cfg.Run + "/sandboxes", w.cfg.Run + "/containers", w.cfg.Root + "/containers"} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s still holds %v", dir, left)
		}
	}
}

// A container whose log was replaced by a link keeps no node from starting: it
// goes on, nothing is written where the link leads, and the next rotation
// gives it a log again.
func TestRestartLogReplaced(t *testing.T) {
	w := newWorld(t)
	p := w.pod("r")
	id := p.start("talks", []string{"sh", "-c", "while true; do echo tick; sleep 0.02; done"})
	log := w.status(id).LogPath
	elsewhere := t.TempDir() + "/elsewhere"
	w.stop()
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, log); err != nil {
		t.Fatal(err)
	}
	w.open()
	if st := w.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("it is %s", st.State)
	}
	if out, code := w.exec(id, "echo", "in"); code != 0 || out != "in\n" {
		t.Errorf("exec: %q, %d", out, code)
	}
	reopen := func() error {
		_, err := w.ReopenContainerLog(context.Background(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		return err
	}
	if err := reopen(); err == nil {
		t.Error("the log is a link and was opened")
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := reopen(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(w.output(id), "tick\n") {
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("something was written where the link leads")
	}
	w.clear()
}

// A record whose resources can't be read is damaged, not one without.
func TestDamagedResources(t *testing.T) {
	for raw, want := range map[string]bool{"": true, `{"cpuShares":"2"}`: true, `{"cpuShares":`: false, `{"cpuShares":{}}`: false, `7`: false} {
		if _, err := unmarshalResources(json.RawMessage(raw)); (err == nil) != want {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

// What pause kept and is no container's streams leaks nothing.
func TestRestoreIO(t *testing.T) {
	open := func(n int) (files []*os.File) {
		for range n {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		return files
	}
	closed := func(files []*os.File) bool {
		for _, f := range files {
			if f.Close() == nil {
				return false
			}
		}
		return true
	}
	for _, c := range []struct {
		n   int
		tty bool
	}{{0, false}, {1, false}, {4, false}, {0, true}, {2, true}} {
		files := open(c.n)
		if _, err := restoreIO(files, c.tty); err == nil || !closed(files) {
			t.Errorf("%d descriptors, tty %v: %v", c.n, c.tty, err)
		}
	}
	// One that can't be duplicated: those before and after it are closed.
	files := open(3)
	files[1].Close()
	mine := []*os.File{files[0], files[2]}
	if _, err := restoreIO(files, false); err == nil || !closed(mine) {
		t.Errorf("a descriptor that is none: %v", err)
	}
}
