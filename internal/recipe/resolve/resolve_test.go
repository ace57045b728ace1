package resolve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/recipe"
)

func TestTargets(t *testing.T) {
	dir := t.TempDir()
	for link, to := range map[string]string{
		"etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
		"var/run":         "/run",
		"var/lock":        "run/lock",
		"out":             "../../../../outside/x",
		"whole":           "/usr/lib",
		"hidden/sub":      "/etc",
		"hidden/gone":     "/nowhere",
		"loop1":           "/loop2/x",
		"loop2":           "loop1",
		"dots":            "/none/../../made",
		"file/x":          "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if to == "" {
			continue
		}
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	os.MkdirAll(dir+"/usr/lib/place", 0o755)
	os.WriteFile(dir+"/plain", nil, 0o644)
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()

	for at, want := range map[string]string{
		"/etc/resolv.conf":       "/run/systemd/resolve/stub-resolv.conf",
		"/var/run/secrets/token": "/run/secrets/token",
		"/var/lock/a":            "/run/lock/a",
		"/out/y":                 "/outside/x/y",
		"/whole/place":           "/whole/place", // exists: the recipe finds it itself
		"/whole/new":             "/usr/lib/new",
		"/none/at/all":           "/none/at/all",
		"/dots":                  "/made",
		"/plain/x":               "/plain/x",
		"/loop1":                 "/loop1",
	} {
		mounts := []recipe.Mount{{Target: at}}
		if err := Targets(root, mounts); err != nil || mounts[0].Target != want {
			t.Errorf("%s: %s, %v, want %s", at, mounts[0].Target, err, want)
		}
	}

	// What an earlier mount covers doesn't count.
	mounts := []recipe.Mount{{Target: "/hidden"}, {Target: "/hidden/gone/x"}, {Target: "/var/run"}, {Target: "/var/run/x"}}
	if err := Targets(root, mounts); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(mounts[1].Target, mounts[2].Target, mounts[3].Target); got != "/hidden/gone/x/run/run/x" {
		t.Error(got)
	}
}

// TestEndlessLinks: links that grow with every step end in an error.
func TestEndlessLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("d/../l/x", dir+"/l"); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(dir+"/d", 0o755)
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := walk(root, "/l", nil); !errors.Is(err, unix.ELOOP) {
		t.Errorf("%v, want ELOOP", err)
	}
}
