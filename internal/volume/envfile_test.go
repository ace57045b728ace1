package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEnvFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good", "# comment\nA='1'\nB='two\nlines'\nEMPTY=''\n")
	write("bad", "A=unquoted-secret\n")
	write("big", strings.Repeat("#", maxEnvFile+1))
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/good", filepath.Join(dir, "in")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file, key, value string
		ok               bool
		err              string
	}{
		{"good", "A", "1", true, ""},
		{"in", "B", "two\nlines", true, ""},
		{"good", "EMPTY", "", false, ""},
		{"good", "C", "", false, ""},
		{"bad", "A", "", false, "value must be enclosed in single quotes"},
		{"big", "A", "", false, "larger than"},
		{"pipe", "A", "", false, "not a regular file"},
		{"missing", "A", "", false, "no such file"},
		{"out", "root", "", false, "no such file"},
	} {
		value, ok, err := EnvFile(Mounted{HostPath: dir}, c.file, c.key)
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "secret")):
			t.Errorf("%s: got %v, want %q", c.file, err, c.err)
		case c.err == "" && (err != nil || value != c.value || ok != c.ok):
			t.Errorf("%s of %s: got %q, %v, %v", c.key, c.file, value, ok, err)
		}
	}
}
