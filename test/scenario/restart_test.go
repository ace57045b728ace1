package scenario

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A phased is a pod that leaves marks, one line each, in a directory of the
// machine, so that the test sees how far it has come whoever is the node. The
// node is killed when all pods are in the middle of their phase ("before"),
// /marks/killed appears while nobody is the node, and /marks/back when there
// is one again.
type phased struct {
	name, spec string
	// before and after are the marks then, as a story has them.
	before, after string
}

var phases = []phased{
	{"pulling", "  containers: [{name: app, image: REGISTRY/hangs:1}]\n", "", ""},
	{"init", `
  restartPolicy: Never
  initContainers:
  - {name: init, command: [sh, -c, "mark init begins; await back; mark init ends"]}
  containers:
  - {name: app, command: [sh, -c, "mark app"]}
`, "init begins", "init begins\ninit ends\napp"},
	{"init-ends-away", `
  restartPolicy: Never
  initContainers:
  - {name: init, command: [sh, -c, "mark init begins; await killed; mark init ends"]}
  containers:
  - {name: app, command: [sh, -c, "mark app"]}
`, "init begins", "init begins\ninit ends\napp"},
	{"sidecar-starts", `
  initContainers:
  - {name: side, restartPolicy: Always, command: [sh, -c, "mark side; await never"], startupProbe: {exec: {command: [sh, -c, "[ -e /marks/back ]"]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1000}}
  containers:
  - {name: app, command: [sh, -c, "mark app; await never"]}
`, "side", "side\napp"},
	{"poststart", `
  containers:
  - {name: app, command: [sh, -c, "mark app; await never"], lifecycle: {postStart: {exec: {command: [sh, -c, "mark hook; await back"]}}}}
  - {name: other, command: [sh, -c, "await never"]}
`, "app\nhook", "app\nhook"},
	{"running", "  containers: [{name: app, command: [sh, -c, \"mark up; await never\"]}]\n", "up", "up"},
	{"ends-away", `
  restartPolicy: OnFailure
  containers:
  - {name: app, command: [sh, -c, "mark run; [ -e /marks/killed ] && exit 0; await killed; exit 3"]}
`, "run", "run\nrun"},
	{"succeeds-away", `
  restartPolicy: OnFailure
  containers:
  - {name: app, command: [sh, -c, "mark run; await killed"]}
`, "run", "run"},
	{"backoff", "  containers: [{name: app, command: [sh, -c, \"mark run; exit 1\"]}]\n", "run\nrun\n…", "run\nrun\nrun\n…"},
	{"liveness", `
  containers:
  - {name: app, command: [sh, -c, "mark up; await never"], livenessProbe: {exec: {command: [sh, -c, "[ ! -e /marks/back ]"]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2}}
`, "up", "up\nup\n…"},
	{"job", "  restartPolicy: Never\n  containers: [{name: app, command: [sh, -c, \"mark once\"]}]\n", "once", "once"},
	{"terminating", `
  terminationGracePeriodSeconds: 600
  containers:
  - {name: app, command: [sh, -c, "trap 'mark asked; await back; exit 0' TERM; mark up; await never"]}
`, "up", "up\nasked\n? asked"},
}

// prelude defines the words of the pods' scripts.
const prelude = `mark() { echo \"$@\" >> /marks/NAME; }; await() { while [ ! -e /marks/$1 ]; do sleep 0.1; done; }; `

// manifest completes a pod: the image, the marks, the words of its scripts.
func (p phased) manifest(marks, registry string) string {
	spec := strings.ReplaceAll(strings.ReplaceAll(p.spec, "REGISTRY", registry), "[sh, -c, \"", "[sh, -c, \""+strings.ReplaceAll(prelude, "NAME", p.name))
	extra := fmt.Sprintf("image: %q, volumeMounts: [{name: marks, mountPath: /marks}], ", imageName)
	spec = strings.ReplaceAll(spec, "command: [sh, -c, ", extra+"command: [sh, -c, ")
	spec = strings.ReplaceAll(spec, "exec: {"+extra, "exec: {") // probes and hooks have none of their own
	head := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  volumes: [{name: marks, hostPath: {path: %s}}]\n", p.name, marks)
	if !strings.Contains(spec, "terminationGracePeriodSeconds") {
		head += "  terminationGracePeriodSeconds: 1\n"
	}
	return head + strings.TrimPrefix(spec, "\n")
}

// TestNodeKilled: the node is killed in the middle of every phase of a pod's
// life; the next one carries on.
func TestNodeKilled(t *testing.T) {
	m := newMachine(t)
	m.runtime(writeImage(t, m.Dir))
	marks, manifests := filepath.Join(m.Dir, "marks"), filepath.Join(m.Dir, "manifests")
	if err := os.Mkdir(marks, 0o755); err != nil {
		t.Fatal(err)
	}
	registry := hangingRegistry(t)
	for _, p := range phases {
		m.File("manifests/"+p.name+".yaml", p.manifest(marks, registry.Addr().String()))
	}
	marked := func(name string) string {
		text, err := os.ReadFile(filepath.Join(marks, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	reach := func(when string, want func(p phased) string) {
		t.Helper()
		deadline := time.Now().Add(giveUp)
		for _, p := range phases {
			for !match(strings.Split(want(p), "\n"), strings.Split(marked(p.name), "\n")) {
				if time.Now().After(deadline) {
					t.Fatalf("%s, %s: marks %q, want %q", when, p.name, marked(p.name), want(p))
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}

	first := m.Start("serve", "--manifests", manifests)
	reach("before", func(p phased) string { return p.before })
	first.Says("Back-off restarting failed container")
	if _, err := registry.Accept(); err != nil { // and the pull is under way
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(manifests, "terminating.yaml")); err != nil {
		t.Fatal(err)
	}
	for marked("terminating") != "up\nasked" {
		time.Sleep(20 * time.Millisecond)
	}
	first.Signal(syscall.SIGKILL)
	first.Code()

	m.File("marks/killed", "")
	time.Sleep(500 * time.Millisecond) // what ends while nobody looks, ends
	second := m.Start("serve", "--manifests", manifests)
	second.Says("serving the Kubernetes API")
	m.File("marks/back", "")
	reach("after", func(p phased) string { return p.after })
	if _, err := registry.Accept(); err != nil { // it is pulled again
		t.Fatal(err)
	}

	// All of them end, whatever they went through.
	for _, p := range phases {
		if err := os.Remove(filepath.Join(manifests, p.name+".yaml")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(giveUp); ; time.Sleep(50 * time.Millisecond) {
		left, err := filepath.Glob(filepath.Join(m.Root, "pods", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pods are left: %q", left)
		}
	}
	reach("at the end", func(p phased) string { return p.after })
	second.Signal(syscall.SIGTERM)
	if code := second.Code(); code != 0 {
		t.Errorf("serve ended with code %d", code)
	}
	m.NothingMounted()
}

// hangingRegistry accepts connections and says nothing.
func hangingRegistry(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
