package e2e

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// object reads an object of the API until it is as it should be.
func object[T any](t *testing.T, n *node, so func(*T) bool, args ...string) *T {
	t.Helper()
	var last []byte
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); pause() {
		// Only what was asked for: a client's warnings are on standard error.
		out, err := n.Command(append([]string{"get", "-o", "json"}, args...)...).Output()
		var v T
		if last = out; err == nil && json.Unmarshal(out, &v) == nil && so(&v) {
			return &v
		}
	}
	t.Fatalf("%v never is as it should be:\n%s", args, last)
	return nil
}

// TestPressure: a node that is short of memory ends a pod that promised
// nothing, says so, takes in no other, and gives unused images back when its
// disk is fuller than it may be.
func TestPressure(t *testing.T) {
	n := newNode(t)
	manifests := filepath.Join(n.Dir, "manifests")
	pod := n.file("pod.yaml", `apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: a
    image: IMAGE
    command: [/bin/busybox, sh, -c, sleep 1000]
`)
	first := n.Start("serve", "--manifests", manifests)
	first.Says("serving the Kubernetes API")
	for code := 1; code != 0; {
		// The namespace's service account may be yet to come.
		if code, _ = n.Do("apply", "-f", pod); code != 0 {
			pause()
		}
	}
	object(t, n, func(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning }, "pod", "p")
	first.Signal(syscall.SIGTERM)
	if code := first.Code(); code != 0 {
		t.Fatalf("serve ended with code %d", code)
	}

	args := []string{"serve", "--manifests", manifests, "--eviction-hard", "memory.available<100Ti",
		"--image-gc-high-threshold", "1", "--image-gc-low-threshold", "0", "--minimum-image-ttl-duration", "0s"}
	second := n.Start(args...)
	second.Says("serving the Kubernetes API")
	evicted := object(t, n, func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed }, "pod", "p")
	if s := evicted.Status; s.Reason != "Evicted" || !strings.HasPrefix(s.Message, "The node was low on resource: memory. Threshold quantity: 100Ti, available: ") ||
		!strings.Contains(s.Message, "Container a was using ") {
		t.Errorf("%s: %s", s.Reason, s.Message)
	}
	object(t, n, func(list *v1.NodeList) bool {
		return len(list.Items) == 1 && slices.ContainsFunc(list.Items[0].Status.Conditions, func(c v1.NodeCondition) bool {
			return c.Type == v1.NodeMemoryPressure && c.Status == v1.ConditionTrue && c.Reason == "KubeletHasInsufficientMemory"
		})
	}, "nodes")
	// The pod's container is still there, for its logs, and so is its image.
	if code, out := n.Do("image", "ls"); code != 0 || !strings.Contains(out, "unipod-demo") {
		t.Errorf("images: code %d\n%s", code, out)
	}
	if code, out := n.Do("delete", "pod", "p"); code != 0 {
		t.Errorf("delete: code %d\n%s", code, out)
	}
	second.Signal(syscall.SIGTERM)
	if code := second.Code(); code != 0 {
		t.Errorf("serve ended with code %d", code)
	}

	third := n.Start(args...)
	third.Says("removed an unused image")
	if code, out := n.Do("image", "ls"); code != 0 || strings.Contains(out, "unipod-demo") {
		t.Errorf("images: code %d\n%s", code, out)
	}
	third.Signal(syscall.SIGTERM)
	third.Code()
}
