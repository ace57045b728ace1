package controllers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// upstreamNames reads the list of controllers of the Kubernetes this module is
// built with.
func upstreamNames(t *testing.T) []string {
	t.Helper()
	const path = "k8s.io/kubernetes/cmd/kube-controller-manager/names"
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", path, err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok {
				for _, v := range spec.Values {
					if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						name, _ := strconv.Unquote(lit.Value)
						names = append(names, name)
					}
				}
			}
			return true
		})
	}
	return names
}

// Every controller upstream has is in the table, once, with a reason.
func TestAllIsAll(t *testing.T) {
	var ours []string
	for _, c := range All {
		if c.Why == "" {
			t.Errorf("%s: no reason", c.Name)
		}
		if slices.Contains(ours, c.Name) {
			t.Errorf("%s: twice", c.Name)
		}
		ours = append(ours, c.Name)
	}
	theirs := upstreamNames(t)
	if len(theirs) < 40 {
		t.Fatalf("only %d names read from upstream: this test looks in the wrong place", len(theirs))
	}
	for _, name := range theirs {
		if !slices.Contains(ours, name) {
			t.Errorf("upstream's %s isn't in the table: is it used, and why (not)?", name)
		}
	}
	for _, name := range ours {
		if !slices.Contains(theirs, name) {
			t.Errorf("%s: upstream has no such controller", name)
		}
	}
}
