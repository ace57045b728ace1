package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"unipod.dev/unipod/internal/anatomy"
	"unipod.dev/unipod/test/harness"
)

// body gets a page; the test fails when there is none.
func body(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDemo plays the demo and looks at it in every way there is.
func TestDemo(t *testing.T) {
	n := newNode(t)
	play := n.Start("play", "../../examples/demo/pod.yaml")
	play.Says("demo/prepare | prepared")
	play.Says("Running, ready")
	play.Says("demo/clock   | page number 1")

	var pod anatomy.Pod
	n.get(&pod, "anatomy", "demo", "-o", "json", "--recipe")
	if pod.Pause == nil || len(pod.Containers) != 3 || pod.State != "Ready" || len(pod.Network.Addresses) == 0 {
		t.Fatalf("anatomy: %+v", pod)
	}
	address, _, _ := strings.Cut(pod.Network.Addresses[0], "/")
	for _, url := range []string{"http://" + address + "/", "http://127.0.0.1:8080/"} {
		if page := body(t, url); !strings.Contains(page, "<h1>A pod runs</h1>") || !strings.Contains(page, "in demo, page number") {
			t.Errorf("%s: %q", url, page)
		}
	}
	checkAnatomy(t, &pod)
	if code, tree := n.Do("anatomy", "default/demo", "--recipe"); code != 0 || !strings.Contains(tree, "container web  Running") || !strings.Contains(tree, "execve") {
		t.Errorf("anatomy: code %d\n%s", code, tree)
	}
	var pods []struct {
		Name       string
		IPs        []string
		Containers []struct{ Name, State string }
	}
	n.get(&pods, "ps", "-o", "json")
	if len(pods) != 1 || pods[0].Name != "demo" || len(pods[0].IPs) == 0 || pods[0].IPs[0] != address || len(pods[0].Containers) != 3 {
		t.Errorf("ps: %+v", pods)
	}
	if code, out := n.Do("logs", "demo", "-c", "prepare"); code != 0 || out != "prepared 58 bytes on demo\n" {
		t.Errorf("logs: code %d, %q", code, out)
	}
	if code, out := n.Do("exec", "demo", "-c", "web", "--", "sh", "-c", "hostname; cat /proc/1/comm; exit 7"); code != 7 || !strings.HasPrefix(out, "demo\npause\n") {
		t.Errorf("exec: code %d, %q", code, out)
	}
	if code, out := n.Do("get", "pod", "demo", "-o", "jsonpath={.status.phase}"); code != 0 || out != "Running" {
		t.Errorf("get: code %d, %q", code, out)
	}
	play.Signal(os.Interrupt)
	if code := play.Code(); code != 130 {
		t.Errorf("play ended with code %d", code)
	}
	// That a sidecar ends last is in the logs of test/scenario's; here both ends
	// may come in one status, in any order.
	if left := groupsOf(t, pod.UID); len(left) > 0 {
		t.Errorf("control groups are left: %q", left)
	}
}

// checkAnatomy: the namespaces are shared as the pod asks.
func checkAnatomy(t *testing.T, pod *anatomy.Pod) {
	t.Helper()
	for _, c := range pod.Containers {
		if c.Recipe == "" {
			t.Errorf("container %s: no recipe", c.Name)
		}
		if c.Name == "prepare" {
			if c.State != "Exited" || c.ExitCode != 0 {
				t.Errorf("container prepare: %s, code %d", c.State, c.ExitCode)
			}
			continue
		}
		if c.State != "Running" || c.Process == nil {
			t.Errorf("container %s: %s", c.Name, c.State)
			continue
		}
		want := map[string]string{"net": "pod", "uts": "pod", "ipc": "pod", "pid": "pod", "mnt": "", "user": "host"}
		for _, ns := range c.Process.Namespaces {
			if shared, ok := want[ns.Type]; ok && ns.Shared != shared {
				t.Errorf("container %s, %s namespace: shared with %q, want %q", c.Name, ns.Type, ns.Shared, shared)
			}
			delete(want, ns.Type)
		}
		if len(want) > 0 {
			t.Errorf("container %s: namespaces not seen: %v", c.Name, want)
		}
		var volumes []string
		for _, m := range c.Mounts {
			if strings.HasPrefix(m.Origin, "emptyDir") || strings.HasPrefix(m.Origin, "configMap") {
				volumes = append(volumes, fmt.Sprintf("%s %s %t", m.Target, m.Origin, m.ReadOnly))
			}
		}
		got, expect := strings.Join(volumes, ", "), "/page configMap page true, /www emptyDir www false"
		if c.Name == "web" {
			expect = "/www emptyDir www true"
		}
		if got != expect {
			t.Errorf("container %s, volumes: %s, want %s", c.Name, got, expect)
		}
		if c.Cgroup == nil || c.Cgroup.MemoryLimit != 32<<20 {
			t.Errorf("container %s: control group %+v", c.Name, c.Cgroup)
		}
	}
}

const podHead = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  restartPolicy: %s\n  terminationGracePeriodSeconds: 60\n  containers:\n"

func container(name, script string) string {
	return fmt.Sprintf("  - name: %s\n    image: IMAGE\n    command: [sh, -c, %q]\n", name, script)
}

func TestExitCodes(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name, policy, containers string
		code                     int
		says                     string
	}{
		{"succeeds", "Never", container("a", "echo one") + container("b", "echo two >&2"), 0, "p/b | two"},
		{"fails", "Never", container("a", "exit 0") + container("b", "exit 3"), 3, "p/b · exited with code 3"},
		{"no such command", "Never", "  - name: a\n    image: IMAGE\n    command: [nosuchthing]\n", 128, "nosuchthing"},
		{"no such image", "Never", "  - name: a\n    image: localhost/nothing:1\n    imagePullPolicy: Never\n", 1, "ErrImageNeverPull"},
		{"tries again", "OnFailure", container("a", "[ -e /dev/shm/again ] || { touch /dev/shm/again; exit 9; }"), 0, "p/a · exited with code 9"},
		{"missing volume", "Never", container("a", "true") + "    volumeMounts: [{name: v, mountPath: /v}]\n  volumes: [{name: v, hostPath: {path: /no/such/place, type: Directory}}]\n", 1, "FailedMount"},
		{"privileged", "Never", container("a", "mount -t tmpfs t /tmp && grep CapEff /proc/self/status") + "    securityContext: {privileged: true}\n", 0, "p/a | CapEff"},
		{"too much memory", "Never", container("a", "tail /dev/zero") + "    resources: {limits: {memory: 16Mi}}\n", 137, "OOMKilled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := n.file("pod.yaml", fmt.Sprintf(podHead, tc.policy)+tc.containers)
			if code, out := n.Do("play", path); code != tc.code || !strings.Contains(out, tc.says) {
				t.Errorf("code %d, want %d and %q in:\n%s", code, tc.code, tc.says, out)
			}
		})
	}
}

// TestBadInput: every error is told, and nothing is started, not even a node.
func TestBadInput(t *testing.T) {
	n := &node{harness.New(t, t.TempDir())}
	path := n.file("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: Not_A_Name}\nspec:\n  containers:\n  - {name: c, image: i, comand: [x]}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n")
	code, out := n.Do("play", path)
	if code != 2 {
		t.Errorf("code %d", code)
	}
	for _, want := range []string{"metadata.name", "spec.containers[0].comand", "Deployment", "document 2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	for _, dir := range []string{n.Root, n.Run} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s was made", dir)
		}
	}
	if code, _ := n.Do("play"); code != 2 {
		t.Errorf("play without arguments: code %d", code)
	}
	if code, _ := n.Do("nonsense"); code != 2 {
		t.Errorf("a command that doesn't exist: code %d", code)
	}
}

// TestSecondInterrupt: the first Ctrl-C asks, the second doesn't.
func TestSecondInterrupt(t *testing.T) {
	n := newNode(t)
	path := n.file("pod.yaml", fmt.Sprintf(podHead, "Always")+container("stubborn", "trap 'echo asked' TERM; echo up; while true; do sleep 1; done"))
	play := n.Start("play", path)
	play.Says("p/stubborn | up")
	play.Signal(os.Interrupt)
	play.Says("p/stubborn | asked")
	play.Signal(os.Interrupt)
	if code := play.Code(); code != 130 {
		t.Errorf("code %d", code)
	}
}

// TestKilledPlay: what a killed play leaves, the next one removes.
func TestKilledPlay(t *testing.T) {
	n := newNode(t)
	long := n.file("long.yaml", fmt.Sprintf(podHead, "Always")+container("a", "echo up; sleep 1000"))
	killed := n.Start("play", long)
	killed.Says("p/a | up")
	killed.Signal(syscall.SIGKILL)
	killed.Code()
	short := n.file("short.yaml", fmt.Sprintf(podHead, "Never")+container("a", "echo done"))
	if code, out := n.Do("play", short); code != 0 || !strings.Contains(out, "p/a | done") {
		t.Errorf("code %d:\n%s", code, out)
	}
}

// TestTwoPlays: the second uses the first's node, which stays for it.
func TestTwoPlays(t *testing.T) {
	n := newNode(t)
	host := n.Start("play", n.file("host.yaml", fmt.Sprintf(podHead, "Always")+container("a", "trap 'exit 0' TERM; echo up; while sleep 0.1; do :; done")))
	host.Says("p/a | up")
	job := strings.Replace(fmt.Sprintf(podHead, "Never"), "name: p", "name: guest", 1) + container("b", "echo here; until [ -e /go/on ]; do sleep 0.1; done; echo bye") +
		"    volumeMounts: [{name: go, mountPath: /go}]\n  volumes: [{name: go, hostPath: {path: " + n.Dir + "/go, type: DirectoryOrCreate}}]\n"
	guest := n.Start("play", n.file("guest.yaml", job))
	guest.Says("guest/b | here")
	host.Signal(os.Interrupt)
	host.Says("Another play uses this node")
	if err := os.WriteFile(filepath.Join(n.Dir, "go", "on"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	guest.Says("guest/b | bye")
	if code := guest.Code(); code != 0 {
		t.Errorf("the guest ended with code %d", code)
	}
	if code := host.Code(); code != 130 {
		t.Errorf("the host ended with code %d", code)
	}
}
