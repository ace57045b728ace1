package cri

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/bench"
	"unipod.dev/unipod/test/harness"
)

// The bench measures a runtime through its socket, and takes away what it made.
func TestBench(t *testing.T) {
	n := newNode(t)
	socket := filepath.Join(n.Run, "cri.sock")
	small := []string{"bench", "--pods", "2", "--burst", "4", "--hold", "6", "-o", "json"}
	r := n.bench(append(small[:len(small):len(small)], "--pulls", "1", "--endpoint", "unix://"+socket))
	if len(r.Runtimes) != 1 {
		t.Fatalf("%d columns, want the endpoint's", len(r.Runtimes))
	}
	whole(t, r.Runtimes[0], 1)
	if left := n.leftovers(); left != "" {
		t.Errorf("the bench left %s", left)
	}

	// Without one it measures in its own process and through another's socket.
	dir, err := os.MkdirTemp("", "ub")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	own := &node{Machine: harness.New(t, dir)}
	r = own.bench(append(small[:len(small):len(small)], "--pulls", "0", "--alone"))
	if len(r.Runtimes) != 2 || r.Runtimes[0].Name != "unipod" || r.Runtimes[1].Name != "unipod, socket" {
		t.Fatalf("columns: %+v", r.Runtimes)
	}
	for _, f := range r.Runtimes {
		whole(t, f, 0)
	}
}

// column is what the tests look at of a bench's JSON.
type column struct {
	Name, Version                                 string
	Failed                                        []string
	PodStart, ExecSync, Stop, Pull, RunPodSandbox struct{ N int }
	PodsPerSecond                                 float64
	Held                                          *bench.Held
}

func (n *node) bench(args []string) (r struct {
	Floor    column
	Runtimes []column
}) {
	n.T.Helper()
	var stderr strings.Builder
	cmd := n.Command(args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.T.Fatalf("unipod %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	if err := json.Unmarshal(out, &r); err != nil {
		n.T.Fatalf("%v: %s", err, out)
	}
	return r
}

// whole checks that nothing is missing of a column.
func whole(t *testing.T, c column, pulls int) {
	t.Helper()
	h := c.Held
	if len(c.Failed) > 0 || c.PodStart.N != 2 || c.ExecSync.N != 2 || c.Stop.N != 2 || c.RunPodSandbox.N != 2 || c.Pull.N != pulls || c.PodsPerSecond == 0 {
		t.Errorf("%+v", c)
	}
	if h == nil || h.Pods != 6 || h.Seconds == 0 || h.PauseBytes == 0 || (h.NodeRSS == 0) != (c.Name == "unipod") {
		t.Errorf("%s: held %+v", c.Name, h)
	}
}

// leftovers names the pods and images that are not the test's own.
func (n *node) leftovers() string {
	n.T.Helper()
	var left []string
	pods, err := n.ListPodSandbox(n.T.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.T.Fatal(err)
	}
	for _, p := range pods.Items {
		left = append(left, "pod "+p.Metadata.Name)
	}
	images, err := n.ListImages(n.T.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.T.Fatal(err)
	}
	for _, i := range images.Images {
		if len(i.RepoTags) != 1 || i.RepoTags[0] != image {
			left = append(left, "image "+i.String())
		}
	}
	return strings.Join(left, ", ")
}
