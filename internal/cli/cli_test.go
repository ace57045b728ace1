package cli

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/node"
)

// Every command teaches: what it does in a line, and at least one example
// that begins with its own name.
func TestHelp(t *testing.T) {
	root := newRoot()
	for _, c := range commands(root) {
		switch {
		case c.DisableFlagParsing && c.Name() != "kubectl": // kubectl teaches it
		case c.Name() == "help" || c.Name() == "completion" || c.HasParent() && c.Parent().Name() == "completion":
		case c.Short == "" || c.RunE == nil:
			t.Errorf("%s: no description or nothing to do", c.CommandPath())
		case !c.HasSubCommands() && !strings.Contains(c.Example, c.CommandPath()):
			t.Errorf("%s: no example", c.CommandPath())
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"frobnicate"}, {"play"}, {"anatomy"}, {"anatomy", "a", "b"}, {"play", "--nope", "x"}, {"image", "pull"}, {"version", "x"},
		{"play", "--since", "yesterday", "x"}, {"play", "/no/such/file"}, {"serve", "--only", "api"}, {"serve", "--only", "cri", "--manifests", "x"},
		{"play", "--node", "sometimes", "x"}, {"bench", "--pods", "0"}, {"image", "rm"}, {"rotate-keys"}, {"rotate-keys", "house"}, {"kubeconfig", "x"}, {"restore"},
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(args)
		err := root.Execute()
		var code *codeError
		if !errors.As(err, &code) || code.code != exitUsage {
			t.Errorf("unipod %s: %v, want a usage error", strings.Join(args, " "), err)
		}
	}
}

func TestVerbFirst(t *testing.T) {
	for in, want := range map[string]string{
		"get pods": "get pods", "-n shop get pods": "get -n shop pods", "-nshop get pods": "get -nshop pods",
		"--namespace=shop --run /x get pods": "--run /x get --namespace=shop pods", "--debug -n a logs p": "--debug logs -n a p",
		"--insecure-skip-tls-verify get pods": "get --insecure-skip-tls-verify pods", "--context c exec p -- -n x": "exec --context c p -- -n x",
		"-n shop play x": "-n shop play x", "-n": "-n", "-- get": "-- get", "": "", "--run=/x ps": "--run=/x ps",
	} {
		if got := strings.Join(verbFirst(strings.Fields(in)), " "); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"": {}, "10s": now.Add(-10 * time.Second), "2026-11-23T14:00:00Z": now.Add(-time.Hour),
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("parseSince(%q) = %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"-10s", "10", "14:00", "2026-11-23"} {
		if _, err := parseSince(in, now); err == nil {
			t.Errorf("parseSince(%q) passed", in)
		}
	}
}

func TestPsTable(t *testing.T) {
	pods := []podView{
		{Namespace: "default", Name: "web", State: "READY", IPs: []string{"10.0.0.2", "fd00::2"}, Containers: []containerView{
			{Name: "a", State: "EXITED"}, {Name: "a", State: "RUNNING", Restarts: 1}, {Name: "b", State: "EXITED"},
		}},
		{Namespace: "x", Name: "gone", State: "NOTREADY"},
	}
	var b bytes.Buffer
	if err := table(&b, psHeader, psRows(pods)); err != nil {
		t.Fatal(err)
	}
	want := `NAMESPACE   NAME   RUNNING   STATE      RESTARTS   IP         AGE
default     web    1/2       Ready      1          10.0.0.2   <unknown>
x           gone   0/0       NotReady   0          <none>     <unknown>
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestImageTable(t *testing.T) {
	all := []*node.Image{
		{ID: "sha256:0123456789abcdef", RepoTags: []string{"docker.io/library/a:1", "localhost:5000/a:2"}, Size: 3 << 20, Pinned: true},
		{ID: "sha256:fedcba9876543210", RepoDigests: []string{"docker.io/library/b@sha256:00"}, Size: 1},
		{ID: "sha256:00"},
	}
	var b bytes.Buffer
	if err := table(&b, []string{"IMAGE", "TAG", "ID", "SIZE", "AGE", ""}, imageRows(all)); err != nil {
		t.Fatal(err)
	}
	want := `IMAGE                 TAG      ID              SIZE       AGE         
docker.io/library/a   1        0123456789abc   3.00 MiB   <unknown>   pinned
localhost:5000/a      2        0123456789abc   3.00 MiB   <unknown>   pinned
docker.io/library/b   <none>   fedcba9876543   1 B        <unknown>   
<none>                <none>   00              0 B        <unknown>   
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPullBar(t *testing.T) {
	p := image.Progress{Phase: image.Pulling, Layers: []image.LayerProgress{
		{Status: image.LayerExists, Current: 0, Total: 1 << 30}, {Status: image.LayerDone, Total: 1 << 20},
		{Status: image.LayerUnpacking, Current: 5, Total: 1 << 20}, {Status: image.LayerDownloading, Current: 1 << 20, Total: 2 << 20},
	}}
	for ref, name := range map[string]string{
		"registry.example.com:5000/team/app:1": "app:1",
		"team/app@sha256:0123456789abcdef0123": "app@0123456789abc",
	} {
		if got := pullBar(ref, p); !strings.HasPrefix(got, name+"  ━") || !strings.Contains(got, "75%  3.00 MiB / 4.00 MiB  pulling") {
			t.Errorf("%q", got)
		}
	}
}

// Joined errors are told one by one, whole sentences stay whole.
func TestPrintError(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	for _, tc := range []struct {
		err  error
		want string
	}{
		{one, "error: one\n"},
		{errors.Join(one, errors.Join(two, nil)), "error: one\nerror: two\n"},
		{fmt.Errorf("both: %w, %w", one, two), "error: both: one, two\n"},
		{&codeError{2, errors.Join(one, two)}, "error: one\nerror: two\n"},
	} {
		var b bytes.Buffer
		printError(&b, tc.err)
		if b.String() != tc.want {
			t.Errorf("%v: %q", tc.err, b.String())
		}
	}
}

// While pods play, the log holds what isn't about them.
func TestNotOfPods(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(notOfPods{slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})})
	log.Error("one", "pod", "default/web")
	log.With("pod", "default/web").Error("two")
	log.With("sandbox", "1").Error("three")
	log.Error("four", "error", "disk full")
	if want := "level=ERROR msg=three sandbox=1\nlevel=ERROR msg=four error=\"disk full\"\n"; b.String() != want {
		t.Errorf("%s", b.String())
	}
}
