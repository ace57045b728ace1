package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"unipod.dev/unipod/internal/anatomy"
)

// TestServeRestart: pods of a directory run, don't notice that the node is
// killed and started again, and end when their file goes.
func TestServeRestart(t *testing.T) {
	n := newNode(t)
	manifests := filepath.Join(n.Dir, "manifests")
	n.file("manifests/p.yaml", fmt.Sprintf(podHead, "Always")+container("a", "trap 'exit 0' TERM; echo up; while sleep 0.1; do :; done"))
	first := n.Start("serve", "--manifests", manifests)
	first.Says("Container started")
	before := running(t, n)

	first.Signal(syscall.SIGKILL)
	first.Code()
	var between anatomy.Pod
	n.get(&between, "anatomy", "p", "-o", "json")
	if between.State != "Ready" || between.Containers[0].Process == nil || between.Containers[0].Process.PID != before.Containers[0].Process.PID {
		t.Fatalf("the pod noticed that the node was killed: %+v", between)
	}

	second := n.Start("serve", "--manifests", manifests)
	second.Says("serving the Kubernetes API")
	after := running(t, n)
	if after.SandboxID != before.SandboxID || after.Containers[0].ID != before.Containers[0].ID || after.Containers[0].Process.PID != before.Containers[0].Process.PID {
		t.Errorf("the pod was made anew:\nbefore %+v\nafter  %+v", before, after)
	}
	// The node that adopted it serves it: its exec, its logs.
	// Its mirror is in the API once the files have been read.
	if code, out := n.Do("wait", "--for=create", "--timeout=60s", "pod/p"); code != 0 {
		t.Fatalf("wait: code %d, %s", code, out)
	}
	if code, out := n.Do("exec", "p", "--", "echo", "adopted"); code != 0 || out != "adopted\n" {
		t.Errorf("exec: code %d, %q", code, out)
	}
	if code, out := n.Do("logs", "p"); code != 0 || out != "up\n" {
		t.Errorf("logs: code %d, %q", code, out)
	}
	// A play beside it uses the node that is there.
	path := n.file("job.yaml", strings.Replace(fmt.Sprintf(podHead, "Never"), "name: p", "name: job", 1)+container("a", "echo guest"))
	if code, out := n.Do("play", path); code != 0 || !strings.Contains(out, "job/a | guest") {
		t.Errorf("play beside serve: code %d\n%s", code, out)
	}
	if err := os.Remove(filepath.Join(manifests, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	second.Says("Stopping container")
	for code := 0; code == 0; {
		code, _ = n.Do("anatomy", "p")
		pause()
	}
	second.Signal(syscall.SIGTERM)
	if code := second.Code(); code != 0 {
		t.Errorf("serve ended with code %d", code)
	}
}

// running is the pod p once its container runs.
func running(t *testing.T, n *node) *anatomy.Pod {
	t.Helper()
	for {
		var pod anatomy.Pod
		n.get(&pod, "anatomy", "p", "-o", "json")
		if len(pod.Containers) > 0 && pod.Containers[0].Process != nil {
			return &pod
		}
		pause()
	}
}

// pause is between two looks at something that nobody announces.
func pause() { time.Sleep(50 * time.Millisecond) }
