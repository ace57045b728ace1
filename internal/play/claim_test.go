package play

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
)

// sandboxes is a runtime that has nothing but sandboxes.
type sandboxes struct {
	cri.Runtime
	all   []*runtimeapi.PodSandbox
	calls []string
}

func (s *sandboxes) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.all}, nil
}

func (s *sandboxes) StopPodSandbox(_ context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	s.calls = append(s.calls, "stop "+r.PodSandboxId)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *sandboxes) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	s.calls = append(s.calls, "remove "+r.PodSandboxId)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// A sweep takes what a killed play left, and neither a living play's nor
// anybody else's.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	claim := func() (*Claim, string) {
		c, err := NewClaim(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{filepath.Join(c.PodsDir(), "uid", "volumes"), c.LogDir()} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		return c, c.Name()
	}
	alive, aliveName := claim()
	killed, killedName := claim()
	killed.lock.Close() // what the kernel does to a killed process

	runtime := &sandboxes{all: []*runtimeapi.PodSandbox{
		{Id: "of-the-living", Annotations: map[string]string{Annotation: aliveName}},
		{Id: "of-the-killed", Annotations: map[string]string{Annotation: killedName}},
		{Id: "of-nobody"},
	}}
	if err := Sweep(t.Context(), root, runtime, nil); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(runtime.calls, ", "); got != "stop of-the-killed, remove of-the-killed" {
		t.Errorf("calls: %s", got)
	}
	if _, err := os.Stat(killed.dir); !os.IsNotExist(err) {
		t.Errorf("the killed play's directory: %v", err)
	}
	if dir, err := HostLogs(root); err != nil || dir != alive.LogDir() {
		t.Errorf("the living play's logs: %q, %v", dir, err)
	}
	if _, err := os.Stat(alive.LogDir()); err != nil {
		t.Errorf("the living play's directory: %v", err)
	}
	// While one lives, another waits for it; then no more.
	other, _ := claim()
	waits := make(chan bool, 1)
	done := make(chan error, 1)
	go func() { done <- other.Others(t.Context(), func() { waits <- true }) }()
	<-waits
	if err := alive.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := other.Others(t.Context(), func() { t.Error("waits for nobody") }); err != nil {
		t.Fatal(err)
	}
	if err := other.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "play", "[^.]*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
