//go:build faults

package runtime

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/fault"
)

// lifeEnv makes the test binary a node that lives one pod's life on the
// directories it names, until it is killed at a fault point.
const lifeEnv = "UNIPOD_TEST_LIFE"

// TestLife is not a test of its own: it is the process that dies.
func TestLife(t *testing.T) {
	dir := os.Getenv(lifeEnv)
	if dir == "" {
		t.Skip("run by TestKilledAnywhere in a process of its own")
	}
	w := &world{t: t, cfg: Config{Root: filepath.Join(dir, "r"), Run: filepath.Join(dir, "n")}}
	w.open()
	p := w.pod("victim")
	fmt.Println("acknowledged sandbox", p.id)
	id := p.start("app", []string{"sleep", "1000"})
	fmt.Println("acknowledged container", id)
	p.run("exit 9")
	fmt.Println("removing")
	w.clear()
	fmt.Println("acknowledged removal")
}

// A node killed at any point leaves nothing that its successor doesn't adopt
// or remove, and nothing it has acknowledged is lost.
func TestKilledAnywhere(t *testing.T) {
	// The points, found by living a life that passes them all.
	w := newWorld(t)
	dir := filepath.Dir(w.cfg.Root)
	w.stop()
	logFile := filepath.Join(t.TempDir(), "points")
	if out, err := live(dir, fault.LogEnv+"="+logFile); err != nil {
		t.Fatalf("an undisturbed life: %v\n%s", err, out)
	}
	b, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	var points []string
	for _, p := range strings.Fields(string(b)) {
		if count[p]++; count[p] == 1 {
			points = append(points, p)
		}
	}
	if len(points) < 15 {
		t.Fatalf("only %d fault points: %v", len(points), points)
	}
	for _, p := range points {
		for n := range min(count[p], 2) {
			t.Run(fmt.Sprintf("%s@%d", p, n), func(t *testing.T) {
				out, err := live(dir, fmt.Sprintf("%s=%s@%d", fault.Env, p, n))
				if err == nil {
					t.Fatalf("it was not killed:\n%s", out)
				}
				w.t = t
				w.open()
				defer w.stop()
				checkAcknowledged(t, w, out)
				w.clear()
				checkNothingLeft(t, w)
			})
		}
	}
	w.t = t
	w.open() // for newWorld's clean-up
}

func live(dir string, env ...string) (string, error) {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestLife$", "-test.v")
	cmd.Env = append(os.Environ(), append(env, lifeEnv+"="+dir)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// checkAcknowledged compares what the dead node answered with what is there.
func checkAcknowledged(t *testing.T, w *world, out string) {
	t.Helper()
	if strings.Contains(out, "acknowledged removal") {
		return
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "acknowledged" {
			continue
		}
		switch f[1] {
		case "sandbox":
			if _, err := w.sandbox(f[2]); err != nil && !removing(out) {
				t.Errorf("an acknowledged sandbox is lost: %v", err)
			}
		case "container":
			c, err := w.container(f[2])
			if err != nil && !removing(out) {
				t.Errorf("an acknowledged container is lost: %v", err)
			}
			if err == nil && !removing(out) && c.state() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("an acknowledged container is %s", c.state())
			}
		}
	}
}

// removing tells whether the life had come to its end: what is then missing
// was being removed.
func removing(out string) bool { return strings.Contains(out, "\nremoving\n") }

func checkNothingLeft(t *testing.T, w *world) {
	t.Helper()
	for _, dir := range []string{"sandboxes", "containers"} {
		if left, _ := os.ReadDir(filepath.Join(w.cfg.Run, dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(w.cfg.Root, "containers")); len(left) > 0 {
		t.Errorf("writable layers left: %v", left)
	}
	if owners := w.cfg.Images.Owners(); len(owners) > 0 {
		t.Errorf("image layers still held by %v", owners)
	}
	// Veths go behind the answer.
	deadline := time.Now().Add(5 * time.Second)
	for {
		out, err := exec.Command("ip", "-o", "link", "show", "type", "veth").Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(out)) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("veths left: %s", out)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	out, err := exec.Command("pgrep", "-f", "^sleep 1000$").Output()
	if err == nil && slices.ContainsFunc(strings.Fields(string(out)), func(string) bool { return true }) {
		for _, pid := range strings.Fields(string(out)) {
			b, _ := os.ReadFile("/proc/" + pid + "/cgroup")
			if strings.Contains(string(b), filepath.Base(filepath.Dir(w.cfg.Root))) {
				t.Errorf("a process is left: %s %s", pid, b)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.cfg.Root+"/containers") || strings.Contains(string(mounts), w.cfg.Run) {
		t.Errorf("mounts left:\n%s", mounts)
	}
}
