package scenario

import (
	"strings"
	"testing"
	"time"
)

// objects are the pods of TestByKubectl: what becomes of them is asked for
// while they run.
const objects = `
apiVersion: v1
kind: Pod
metadata: {name: debugged}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: IMAGE, command: [server, -http, ":8080"]}
---
apiVersion: v1
kind: Pod
metadata: {name: resized}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: IMAGE
    command: [sleep, "1000"]
    resources: {requests: {memory: 64Mi, cpu: 100m}, limits: {memory: 64Mi, cpu: 100m}}
    resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}, {resourceName: memory, restartPolicy: NotRequired}]
---
apiVersion: v1
kind: Pod
metadata: {name: gated}
spec:
  terminationGracePeriodSeconds: 1
  readinessGates: [{conditionType: example.com/ok}]
  containers:
  - {name: app, image: IMAGE, command: [sleep, "1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: deaf}
spec:
  terminationGracePeriodSeconds: 600
  containers:
  - {name: app, image: IMAGE, command: [sh, -c, "trap 'echo not now' TERM; echo up; while :; do sleep 0.2; done"]}
`

// TestByKubectl: what only the API can ask for: ephemeral containers, resizing
// in place, another's condition, force deletion.
func TestByKubectl(t *testing.T) {
	m := newMachine(t)
	m.runtime(writeImage(t, m.Dir))
	serve := m.Start("serve", "--manifests", m.Dir+"/manifests")
	serve.Says("serving the Kubernetes API")
	must := func(args ...string) {
		t.Helper()
		if code, out := m.Do(args...); code != 0 {
			t.Fatalf("%v: code %d\n%s", args, code, out)
		}
	}
	// until asks again until the answer is what is wanted.
	until := func(want string, args ...string) {
		t.Helper()
		for deadline := time.Now().Add(giveUp); ; time.Sleep(100 * time.Millisecond) {
			out := m.Answer(args...)
			if out == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v: %q, want %q", args, out, want)
			}
		}
	}
	must("apply", "-f", m.File("objects.yaml", strings.ReplaceAll(objects, "IMAGE", imageName)))
	must("wait", "pod/debugged", "pod/resized", "pod/deaf", "--for=condition=Ready", "--timeout=60s")

	// An ephemeral container joins the processes of its target, runs once, and
	// leaves the pod as it was.
	must("debug", "debugged", "--image="+imageName, "--target=app", "-c", "look", "--", "sh", "-c", "cat /proc/1/comm; exit 3")
	until("3", "get", "pod", "debugged", "-o", "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}")
	if out := m.Answer("logs", "debugged", "-c", "look"); out != "server" {
		t.Errorf("the ephemeral container saw %q", out)
	}
	until("Running 0", "get", "pod", "debugged", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}")

	// Memory is resized under the running container, CPU by a restart, as each
	// one's policy says.
	limit := []string{"exec", "resized", "--", "sh", "-c", "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"}
	until("67108864", limit...)
	must("patch", "pod", "resized", "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"app","resources":{"requests":{"memory":"96Mi"},"limits":{"memory":"96Mi"}}}]}}`)
	until("96Mi 0", "get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].restartCount}")
	until("100663296", limit...)
	until("", "get", "pod", "resized", "-o", `jsonpath={.status.conditions[?(@.type=="PodResizeInProgress")].status}{.status.conditions[?(@.type=="PodResizePending")].status}`)
	must("patch", "pod", "resized", "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"app","resources":{"requests":{"cpu":"200m"},"limits":{"cpu":"200m"}}}]}}`)
	until("200m 1", "get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].restartCount}")
	// What was asked for and what was seen of it are the same generation.
	generation := m.Answer("get", "pod", "resized", "-o", "jsonpath={.metadata.generation}")
	until(generation+" "+generation, "get", "pod", "resized", "-o", `jsonpath={.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].observedGeneration}`)

	// A readiness gate is opened by whoever owns its condition.
	until("True False", "get", "pod", "gated", "-o", `jsonpath={.status.conditions[?(@.type=="ContainersReady")].status} {.status.conditions[?(@.type=="Ready")].status}`)
	must("patch", "pod", "gated", "--subresource=status", "-p", `{"status":{"conditions":[{"type":"example.com/ok","status":"True"}]}}`)
	must("wait", "pod/gated", "--for=condition=Ready", "--timeout=60s")

	// Force deletion waits for nobody: not for the app, whose grace is long.
	must("delete", "pod", "deaf", "--force", "--grace-period=0", "--wait=false")
	must("wait", "pod/deaf", "--for=delete", "--timeout=60s")
	if m.Endpoint == "" {
		for deadline := time.Now().Add(giveUp); ; time.Sleep(100 * time.Millisecond) {
			if code, _ := m.Do("anatomy", "deaf"); code != 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the pod that was deleted by force is still there")
			}
		}
	}
	must("delete", "pods", "--all", "--timeout=60s")
}
