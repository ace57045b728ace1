package volume

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTrees(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "volumes", "pvc-1")
	for range 2 { // again is no error: the first time may have been cut short
		if err := MakeTree(dir); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]fs.FileMode{dir: 0o777, filepath.Dir(dir): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %o", path, info.Mode(), err, want)
		}
	}
	deep := filepath.Join(dir, strings.Repeat("d/", 500))
	if err := os.MkdirAll(deep, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveTree(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}
