package static

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an engine and a runtime that tell what is asked of them.
type fake struct {
	cri.Runtime
	calls  chan string
	events chan engine.Event
	pods   map[types.UID]*v1.Pod
	old    []*runtimeapi.PodSandbox
	from   engine.Origin // the last pod
}

func (f *fake) Apply(pod *v1.Pod, from engine.Origin) error {
	f.from = from
	f.pods[pod.UID] = pod
	f.calls <- "apply " + pod.Name + " " + pod.Labels["v"]
	return nil
}

func (f *fake) Delete(uid types.UID, _ *time.Duration) {
	f.calls <- "delete " + f.pods[uid].Name + " " + f.pods[uid].Labels["v"]
}

func (f *fake) Watch(context.Context) <-chan engine.Event { return f.events }

func (f *fake) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: f.old}, nil
}

func (f *fake) CleanOrphans(_ context.Context, keep func(types.UID) bool) error {
	for _, s := range f.old {
		if uid := s.Metadata.Uid; !keep(types.UID(uid)) {
			f.calls <- "clean " + uid
		}
	}
	return nil
}

type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	f := &fake{calls: make(chan string, 10), events: make(chan engine.Event), pods: map[types.UID]*v1.Pod{}, old: []*runtimeapi.PodSandbox{
		{Id: "gone", Metadata: &runtimeapi.PodSandboxMetadata{Uid: "x"}, Annotations: map[string]string{"unipod.dev/manifests": dir}},
		{Id: "another's", Metadata: &runtimeapi.PodSandboxMetadata{Uid: "y"}},
	}}
	write := func(name, version string) {
		t.Helper()
		text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {v: %q}}\nspec: {containers: [{name: c, image: i}]}\n", name, version)
		if version == "broken" {
			text = "kind: Nonsense\n"
		}
		// As a careful editor does: the file is never half there.
		if err := os.WriteFile(filepath.Join(dir, ".tmp"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, ".tmp"), filepath.Join(dir, name+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if got := <-f.calls; got != w {
				t.Fatalf("got %q, want %q", got, w)
			}
		}
	}
	removed := func(name, version string) {
		var gone *v1.Pod
		for _, p := range f.pods {
			if p.Name == name && p.Labels["v"] == version {
				gone = p
			}
		}
		f.events <- engine.Event{Type: engine.Removed, Pod: gone}
	}
	write("a", "1")
	logged := make(lines, 10)
	objects := &Objects{}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Dir: dir, Engine: f, Objects: objects, Runtime: f, Log: slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelError}))})
	}()
	expect("apply a 1", "clean x")
	write("b", "1")
	expect("apply b 1")

	// A change replaces the pod once the old one is gone.
	write("a", "2")
	expect("delete a 1")
	removed("a", "1")
	expect("apply a 2")

	// Anything wrong in the directory changes nothing.
	write("c", "broken")
	if l := <-logged; !strings.Contains(l, "c.yaml") {
		t.Errorf("logged %q", l)
	}
	if err := os.Remove(filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	expect("delete b 1")
	removed("b", "1")

	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	expect("delete a 2")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(f.calls) > 0 {
		t.Errorf("more calls: %q", <-f.calls)
	}
}

// TestBrokenAtStart: a file that can't be read ends nothing that an earlier life
// left, keeps no other pod from starting, and is told when it is mended.
func TestBrokenAtStart(t *testing.T) {
	dir := t.TempDir()
	f := &fake{calls: make(chan string, 10), events: make(chan engine.Event), pods: map[types.UID]*v1.Pod{}, old: []*runtimeapi.PodSandbox{
		{Id: "left", Metadata: &runtimeapi.PodSandboxMetadata{Uid: "x"}, Annotations: map[string]string{"unipod.dev/manifests": dir}},
	}}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, ".tmp"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, ".tmp"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: i}]}\n"
	write("good.yaml", fmt.Sprintf(pod, "good"))
	write("bad.yaml", "kind: [")
	loaded := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Dir: dir, Engine: f, Objects: &Objects{}, Runtime: f, Loaded: loaded, Log: slog.New(slog.DiscardHandler)})
	}()
	if got := <-f.calls; got != "apply good " {
		t.Fatalf("got %q", got)
	}
	select {
	case <-loaded:
		t.Error("loaded, with a file that can't be read")
	case got := <-f.calls:
		t.Errorf("got %q", got)
	default:
	}
	write("bad.yaml", fmt.Sprintf(pod, "mended"))
	for _, want := range []string{"apply mended ", "clean x"} {
		if got := <-f.calls; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	<-loaded
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
