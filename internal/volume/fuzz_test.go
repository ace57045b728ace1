package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"unipod.dev/unipod/internal/sys"
)

// FuzzCleanPaths: whatever is accepted as the path of a file stays in the
// volume and isn't one of our own names.
func FuzzCleanPaths(f *testing.F) {
	for _, p := range []string{"a", "a/b", "../a", "a/../../b", "..data", "a//b/.", "/etc", "."} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := cleanPaths(map[string]file{name: {}})
		if err != nil {
			return
		}
		for p := range clean {
			if !filepath.IsLocal(p) || strings.HasPrefix(p, "..") {
				t.Errorf("%q became %q", name, p)
			}
		}
	})
}

// FuzzOpenSubPath: whatever is opened, or made, in a volume full of links is
// in the volume.
func FuzzOpenSubPath(f *testing.F) {
	for _, p := range []string{"a", "dir/new/er", "up/x", "abs/x", "inside/x", "dir/../up", "/abs", "./dir", "file", "file/x", "self/fd", "dir/./back/dir"} {
		f.Add(p)
	}
	base := filepath.Join(f.TempDir(), "volume")
	if err := os.MkdirAll(filepath.Join(base, "dir"), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o600); err != nil {
		f.Fatal(err)
	}
	for name, target := range map[string]string{"up": "..", "abs": "/tmp", "inside": "dir", "self": "/proc/self", "dir/back": "..", "dir/out": "../../x"} {
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			f.Fatal(err)
		}
	}
	root, err := openDir(base)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { root.Close() })
	f.Fuzz(func(t *testing.T, subPath string) {
		got, err := openSubPath(root, subPath)
		if err != nil {
			return
		}
		defer got.Close()
		real, err := os.Readlink(sys.ProcPath(got))
		if err != nil {
			t.Fatal(err)
		}
		if real != base && !strings.HasPrefix(real, base+"/") {
			t.Errorf("%q led to %s", subPath, real)
		}
		if outside, _ := os.ReadDir(filepath.Dir(base)); len(outside) != 1 {
			t.Errorf("%q made something outside: %v", subPath, outside)
		}
	})
}
