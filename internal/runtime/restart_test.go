package runtime

import (
	"context"
	"os"
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
