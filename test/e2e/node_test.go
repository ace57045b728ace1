package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"unipod.dev/unipod/test/harness"
)

// theShop is objects of several kinds, in an order in which they can't be made.
const theShop = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: localhost/unipod-demo:1
        command: [sh, -c, "echo $GREETING; exec sleep 1000"]
        env: [{name: GREETING, valueFrom: {configMapKeyRef: {name: words, key: greeting}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: words, namespace: shop}
data: {greeting: good morning}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
`

// TestPlayControllers: the pods that a controller makes are the play's, beside
// it kubectl's commands work, and Ctrl-C leaves nothing.
func TestPlayControllers(t *testing.T) {
	n := newNode(t)
	play := n.Start("play", n.file("shop.yaml", theShop))
	play.Says("| good morning")
	if code, out := n.Do("-n", "shop", "get", "pods"); code != 0 || strings.Count(out, "web-") != 2 {
		t.Errorf("a flag of kubectl's before the command: code %d\n%s", code, out)
	}
	if code, out := n.Do("rollout", "status", "-n", "shop", "deployment/web", "--timeout=60s"); code != 0 || !strings.Contains(out, "successfully rolled out") {
		t.Errorf("rollout status: code %d\n%s", code, out)
	}
	if code, out := n.Do("scale", "-n", "shop", "deployment/web", "--replicas=3"); code != 0 {
		t.Errorf("scale: code %d\n%s", code, out)
	}
	if code, out := n.Do("wait", "-n", "shop", "deployment/web", "--for=jsonpath={.status.readyReplicas}=3", "--timeout=60s"); code != 0 {
		t.Errorf("wait: code %d\n%s", code, out)
	}
	// Another play may not take what is there, and takes nothing else either.
	again := n.file("again.yaml", strings.Replace(strings.Replace(theShop, "name: web,", "name: other,", 1), "kind: Namespace", "kind: Namespace # again", 1))
	if code, out := n.Do("play", again); code != 2 || !strings.Contains(out, "again.yaml:17: document 2, ConfigMap shop/words: there is already such an object") {
		t.Errorf("a second play: code %d\n%s", code, out)
	}
	play.Signal(os.Interrupt)
	if code := play.Code(); code != 130 {
		t.Errorf("play ended with code %d", code)
	}
	if said := play.Printed(); strings.Count(said, "| good morning") != 3 {
		t.Errorf("not every pod was followed:\n%s", said)
	}
}

const theJob = `apiVersion: batch/v1
kind: Job
metadata: {name: j}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: c
        image: localhost/unipod-demo:1
        command: [sh, -c, "echo working; exit CODE"]
`

// TestPlayJob: a Job counts as its pods.
func TestPlayJob(t *testing.T) {
	n := newNode(t)
	for text, want := range map[string]int{"0": 0, "5": 5} {
		code, out := n.Do("play", n.file("job.yaml", strings.ReplaceAll(theJob, "CODE", text)))
		if code != want || !strings.Contains(out, "/c | working") {
			t.Errorf("code %d, want %d:\n%s", code, want, out)
		}
	}
}

// TestKilledGuest: what a killed play left in the node it used, the next one
// removes.
func TestKilledGuest(t *testing.T) {
	n := newNode(t)
	serve := n.Start("serve", "--manifests", filepath.Join(n.Dir, "none"))
	serve.Says("serving the Kubernetes API")
	guest := n.Start("play", n.file("shop.yaml", theShop))
	guest.Says("| good morning")
	guest.Signal(syscall.SIGKILL)
	guest.Code()
	if code, out := n.Do("play", "--node", "always", n.file("job.yaml", strings.ReplaceAll(theJob, "CODE", "0"))); code != 0 {
		t.Errorf("code %d:\n%s", code, out)
	}
	if code, out := n.Do("wait", "--for=delete", "namespace/shop", "--timeout=60s"); code != 0 {
		t.Errorf("the killed play's namespace: code %d\n%s", code, out)
	}
	if code, out := n.Do("play", "--node", "never", n.file("job.yaml", strings.ReplaceAll(theJob, "CODE", "0"))); code != 1 || !strings.Contains(out, "already runs") {
		t.Errorf("a node of its own beside a running one: code %d:\n%s", code, out)
	}
	serve.Signal(syscall.SIGTERM)
	serve.Code()
}

// TestNodeCommands: the life of a node, from nothing to nothing.
func TestNodeCommands(t *testing.T) {
	n := newNode(t)
	none := filepath.Join(n.Dir, "none")
	for _, args := range [][]string{{"get", "pods"}, {"kubeconfig"}} {
		if code, out := n.Do(args...); code != 1 || !strings.Contains(out, "no node runs") {
			t.Errorf("%v without a node: code %d, %s", args, code, out)
		}
	}
	if code, out := n.Do("status"); code != 3 || !strings.Contains(out, "doesn't run") {
		t.Errorf("status without a node: code %d, %s", code, out)
	}
	serve := n.Start("serve", "--manifests", none)
	serve.Says("serving the Kubernetes API")
	backup := filepath.Join(n.Dir, "backup.zip")
	for _, args := range [][]string{
		{"create", "secret", "generic", "before", "--from-literal=word=kept"},
		{"run", "p", "--image=" + harness.DemoImage, "--image-pull-policy=Never", "--command", "--", "sleep", "1000"},
		{"wait", "--for=condition=Ready", "pod/p", "--timeout=60s"},
		{"backup", backup},
		{"create", "configmap", "after"},
	} {
		if code, out := n.Do(args...); code != 0 {
			t.Fatalf("%v: code %d, %s", args, code, out)
		}
	}
	if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", info, err)
	}
	var status struct {
		Running  bool
		Pods     map[string]int
		Problems []string
	}
	code, out := n.Do("status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || code != 0 || !status.Running || status.Pods["Running"] != 1 {
		t.Errorf("status: code %d, %v, %s", code, err, out)
	}
	config := filepath.Join(n.Dir, "home", "config")
	if code, out := n.Do("kubeconfig", "--merge", "--file", config); code != 0 {
		t.Errorf("kubeconfig: code %d, %s", code, out)
	}
	if code, out := n.Do("kubectl", "--kubeconfig", config, "--context", "unipod", "get", "pod", "p", "-o", "name"); code != 0 || out != "pod/p\n" {
		t.Errorf("the merged kubeconfig: code %d, %s", code, out)
	}
	if code, out := n.Do("restore", backup); code != 1 || !strings.Contains(out, "must be stopped") {
		t.Errorf("restore beside a node: code %d, %s", code, out)
	}
	serve.Signal(syscall.SIGKILL)
	serve.Code()
	if code, out := n.Do("restore", backup); code != 0 {
		t.Fatalf("restore: code %d, %s", code, out)
	}
	// New keys; what the old ones encrypted and signed stays good.
	if code, out := n.Do("rotate-keys", "encryption", "service-account"); code != 0 {
		t.Errorf("rotate-keys: code %d, %s", code, out)
	}
	serve = n.Start("serve", "--manifests", none)
	serve.Says("serving the Kubernetes API")
	if code, out := n.Do("get", "secret", "before", "-o", "jsonpath={.data.word}"); code != 0 || out != "a2VwdA==" {
		t.Errorf("what was there before the backup: code %d, %s", code, out)
	}
	if code, out := n.Do("get", "configmap", "after"); code != 1 || !strings.Contains(out, "not found") {
		t.Errorf("what came after the backup: code %d, %s", code, out)
	}
	if code, out := n.Do("exec", "p", "--", "echo", "lives"); code != 0 || out != "lives\n" {
		t.Errorf("the pod after the restore: code %d, %s", code, out)
	}
	if code, out := n.Do("uninstall"); code != 2 || !strings.Contains(out, "nothing was done") {
		t.Errorf("uninstall without an answer: code %d, %s", code, out)
	}
	if code, out := n.Do("uninstall", "--yes"); code != 0 || !strings.Contains(out, "ended 1 pods") {
		t.Errorf("uninstall: code %d, %s", code, out)
	}
	serve.Code()
	for _, dir := range []string{n.Root, n.Run} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
