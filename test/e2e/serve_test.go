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
	manifests := filepath.Join(filepath.Dir(n.root), "manifests")
	n.file("manifests/p.yaml", fmt.Sprintf(podHead, "Always")+container("a", "trap 'exit 0' TERM; echo up; while sleep 0.1; do :; done"))
	first := n.start("serve", "--manifests", manifests)
	first.until("Container started")
	before := running(t, n)

	first.signal(syscall.SIGKILL)
	first.code()
	var between anatomy.Pod
	n.get(&between, "anatomy", "p", "-o", "json")
	if between.State != "Ready" || between.Containers[0].Process == nil || between.Containers[0].Process.PID != before.Containers[0].Process.PID {
		t.Fatalf("the pod noticed that the node was killed: %+v", between)
	}

	second := n.start("serve", "--manifests", manifests)
	second.until("serving the Kubernetes API")
	after := running(t, n)
	if after.SandboxID != before.SandboxID || after.Containers[0].ID != before.Containers[0].ID || after.Containers[0].Process.PID != before.Containers[0].Process.PID {
		t.Errorf("the pod was made anew:\nbefore %+v\nafter  %+v", before, after)
	}
	// The node that adopted it serves it: its exec, its logs.
	// Its mirror is in the API once the files have been read.
	if code, out := n.do("wait", "--for=create", "--timeout=60s", "pod/p"); code != 0 {
		t.Fatalf("wait: code %d, %s", code, out)
	}
	if code, out := n.do("exec", "p", "--", "echo", "adopted"); code != 0 || out != "adopted\n" {
		t.Errorf("exec: code %d, %q", code, out)
	}
	if code, out := n.do("logs", "p"); code != 0 || out != "up\n" {
		t.Errorf("logs: code %d, %q", code, out)
	}
	// A play beside it uses the node that is there.
	path := n.file("job.yaml", strings.Replace(fmt.Sprintf(podHead, "Never"), "name: p", "name: job", 1)+container("a", "echo guest"))
	if code, out := n.do("play", path); code != 0 || !strings.Contains(out, "job/a | guest") {
		t.Errorf("play beside serve: code %d\n%s", code, out)
	}
	if err := os.Remove(filepath.Join(manifests, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	second.until("Stopping container")
	for code := 0; code == 0; {
		code, _ = n.do("anatomy", "p")
		pause()
	}
	second.signal(syscall.SIGTERM)
	if code := second.code(); code != 0 {
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
