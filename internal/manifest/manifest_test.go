package manifest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"unipod.dev/unipod/test/golden"
)

type fixedNames struct{}

func (fixedNames) GenerateName(base string) string { return base + "abcde" }

// loader reads the same thing each time.
var loader = Loader{
	NodeName: "node",
	UID:      func(p *v1.Pod, _ string) types.UID { return types.UID("uid-of-" + p.Name) },
	Names:    fixedNames{},
	Now:      func() time.Time { return time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC) },
}

// inputs are the manifests of a directory of testdata.
func inputs(t *testing.T, dir string) []string {
	t.Helper()
	names, err := manifestsIn(dir)
	if err != nil || len(names) == 0 {
		t.Fatalf("no test data in %s: %v", dir, err)
	}
	return names
}

func TestBad(t *testing.T) {
	for _, file := range inputs(t, "testdata/bad") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			objects, err := loader.Load([]string{file}, nil)
			if err == nil || objects != nil {
				t.Fatalf("got %v, want an error and nothing else", objects)
			}
			text := strings.ReplaceAll(err.Error(), file, filepath.Base(file)) + "\n"
			if strings.Contains(text, "hunter2") || strings.Contains(text, "secret-is-not") {
				t.Errorf("a secret is in the error:\n%s", text)
			}
			golden.Check(t, file+".want", text)
		})
	}
}

func TestGood(t *testing.T) {
	for _, file := range inputs(t, "testdata/good") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			objects, err := loader.Load([]string{file}, nil)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, w := range objects.Warnings {
				fmt.Fprintf(&b, "# %s\n", strings.ReplaceAll(w.String(), file, filepath.Base(file)))
			}
			show := func(obj any) {
				text, err := yaml.Marshal(obj)
				if err != nil {
					t.Fatal(err)
				}
				b.WriteString("---\n" + string(text))
			}
			for _, p := range objects.Pods {
				show(p)
			}
			for _, cm := range objects.ConfigMaps {
				cm.UID = "random"
				show(cm)
			}
			for _, s := range objects.Secrets {
				s.UID = "random"
				show(s)
			}
			golden.Check(t, file+".want", b.String())
		})
	}
}

// all returns the joined errors.
func all(err error) []*Error {
	var list []*Error
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		list = append(list, e.(*Error))
	}
	return list
}

func TestErrorsAreTyped(t *testing.T) {
	_, err := loader.Load([]string{"testdata/bad/kinds.yaml", "testdata/missing.yaml"}, nil)
	errs := all(err)
	if first := errs[0]; !errors.Is(first, errdefs.ErrNotImplemented) || first.Document != 1 || first.Line != 1 {
		t.Errorf("an unsupported kind: got %+v", first)
	}
	if last := errs[len(errs)-1]; !errors.Is(last, os.ErrNotExist) || last.File != "testdata/missing.yaml" {
		t.Errorf("a missing file: got %v", last)
	}
}

func TestDirectoryAndStdin(t *testing.T) {
	dir := t.TempDir()
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: i}]}\n"
	for _, name := range []string{"b.yml", "a.yaml", ".hidden.yaml", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, pod, name[:1]+"x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := loader.Load([]string{dir, "-"}, strings.NewReader(fmt.Sprintf(pod, "stdin")))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range objects.Pods {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"ax", "bx", "stdin"}) {
		t.Errorf("got %q", names)
	}
}

func TestLimits(t *testing.T) {
	big := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: big}\ndata:\n  a: " + strings.Repeat("x", maxDocument)
	deep := strings.Repeat("[", 100000)
	many := strings.Repeat("a\n---\n", maxDocuments+1)
	// Every field is an error, and every error has to be found again.
	var wide strings.Builder
	wide.WriteString("apiVersion: v1\nkind: Pod\nspec:\n")
	for i := 0; wide.Len() < 512<<10; i++ {
		fmt.Fprintf(&wide, "  a%d: 1\n", i)
	}
	_, err := loader.Load([]string{"-"}, strings.NewReader(wide.String()))
	if errs := all(err); len(errs) != maxErrors+1 || !strings.HasSuffix(errs[0].Msg, " more errors are not shown") {
		t.Errorf("got %d errors, first %v", len(errs), errs[0])
	}
	for name, text := range map[string]string{"big": big, "deep": deep, "many": many} {
		_, err := loader.Load([]string{"-"}, strings.NewReader(text))
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if msg := err.Error(); len(msg) > 500 {
			t.Errorf("%s: an error of %d bytes", name, len(msg))
		} else {
			t.Log(msg)
		}
	}
}

func TestStaticUID(t *testing.T) {
	load := func(image string) types.UID {
		l := loader
		l.UID, l.Names, l.Now = StaticUID, nil, nil
		text := "apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\nspec: {containers: [{name: c, image: " + image + "}]}\n"
		objects, err := l.Load([]string{"-"}, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return objects.Pods[0].UID
	}
	if a, b := load("i"), load("i"); a != b {
		t.Errorf("the same pod got %s and %s", a, b)
	}
	if a, b := load("i"), load("j"); a == b {
		t.Errorf("a changed pod kept %s", a)
	}
}

// BenchmarkLoad reads a pod with its ConfigMap and Secret: part of the time
// from a manifest to a running container, for which the goal is 25 ms.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := loader.Load([]string{"testdata/good/web.yaml"}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
