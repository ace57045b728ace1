package kubectl

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chai2010/gettext-go"
)

// notOurs are kubectl's commands that unipod has itself, or not.
var notOurs = []string{"alpha", "completion", "kuberc", "options", "plugin", "version", "help"}

// The table says what kubectl says, and leaves nothing out.
func TestVerbs(t *testing.T) {
	said := map[string]string{}
	for _, g := range Verbs() {
		for _, v := range g.Verbs {
			said[v.Name] = v.Short
		}
	}
	for _, c := range tree(Config{}).Commands() {
		short, ok := said[c.Name()]
		delete(said, c.Name())
		switch {
		case ok && short != c.Short:
			t.Errorf("%s: %q here, %q in kubectl", c.Name(), short, c.Short)
		case ok == slices.Contains(notOurs, c.Name()):
			t.Errorf("%s: in the table: %v", c.Name(), ok)
		}
	}
	for name := range said {
		t.Errorf("kubectl has no command %s", name)
	}
}

// Examples and usage can be typed as they stand.
func TestNames(t *testing.T) {
	for name, plain := range map[string]bool{"unipod": false, "unipod kubectl": true} {
		root := tree(Config{Plain: plain})
		get, _, err := root.Find([]string{"get"})
		if err != nil {
			t.Fatal(err)
		}
		if got := get.CommandPath(); got != name+" get" {
			t.Errorf("the command is called %q", got)
		}
		if !strings.Contains(get.Example, "\n  "+name+" get pods") || strings.Contains(get.Example, "\n  kubectl get") {
			t.Errorf("%s: examples:\n%s", name, get.Example)
		}
	}
}

func TestOffline(t *testing.T) {
	for args, want := range map[string]bool{
		"get pods": false, "config view": true, "kustomize .": true, "create deployment d --image=x --dry-run=client": true,
		"create deployment d --image=x": false, "set image -f x --local": true, "version --client": true, "version": false, "apply -f x": false,
		"create": true, "create -f x": false, "rollout": true, "rollout status x": false, "plugin list": true, "top": true, "top pod": false,
	} {
		root := tree(Config{})
		cmd, rest, err := root.Find(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Fatal(err)
		}
		if got := offline(cmd); got != want {
			t.Errorf("%s: offline %v", args, got)
		}
		if err := cmd.ParseFlags([]string{"--context", "x"}); err != nil || !elsewhere(cmd.Flags()) {
			t.Errorf("%s --context x: %v", args, err)
		}
	}
}

func TestAlive(t *testing.T) {
	run := t.TempDir()
	err := alive(run)
	if err == nil || !strings.Contains(err.Error(), "unipod serve") {
		t.Errorf("without a node: %v", err)
	}
	cri, err := net.Listen("unix", filepath.Join(run, criSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer cri.Close()
	if err := alive(run); err == nil || !strings.Contains(err.Error(), "CRI only") {
		t.Errorf("a node without an API: %v", err)
	}
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters:\n- {name: unipod, cluster: {server: \"https://%s\"}}\n", api.Addr())
	if err := os.WriteFile(filepath.Join(run, KubeconfigName), []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := alive(run); err != nil {
		t.Error(err)
	}
	api.Close()
	if err := alive(run); err == nil || !strings.Contains(err.Error(), "no node runs") {
		t.Errorf("after the node was killed: %v", err)
	}
}

// No time is spent on translations, see package early.
func TestNoTranslations(t *testing.T) {
	tree(Config{})
	if domain := gettext.SetDomain(""); domain == "k8s" {
		t.Error("kubectl loaded its translations: early.unipod.dev was initialised too late")
	}
}
