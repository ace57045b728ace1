package users

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# comment
app:x:1000:1001:app:/home/app:/bin/sh
nohome:x:1002:1002:::
big:x:4294967295:0::/:/bin/sh
dup:x:0:7::/dup:/bin/sh
`

const group = `root:x:0:
app:x:1001:app
wheel:x:10:root,app
docker:x:999:app
again:x:999:app
other:x:50:someone
`

func image(t *testing.T, files map[string]string) *os.File {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLookup(t *testing.T) {
	full := image(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	empty := image(t, nil)
	for _, tt := range []struct {
		root *os.File
		spec string
		want User
	}{
		{full, "", User{0, 0, []uint32{10}, "root", "/root"}},
		{full, "0", User{0, 0, []uint32{10}, "root", "/root"}},
		{full, "root", User{0, 0, []uint32{10}, "root", "/root"}},
		{full, "app", User{1000, 1001, []uint32{10, 999}, "app", "/home/app"}},
		{full, "1000", User{1000, 1001, []uint32{10, 999}, "app", "/home/app"}},
		{full, "app:docker", User{1000, 999, []uint32{10, 999}, "app", "/home/app"}},
		{full, "app:5", User{1000, 5, []uint32{10, 999}, "app", "/home/app"}},
		{full, "4242:other", User{4242, 50, nil, "", "/"}},
		{full, "4242", User{4242, 0, nil, "", "/"}},
		{full, "4242:4243", User{4242, 4243, nil, "", "/"}},
		{full, "nohome", User{1002, 1002, nil, "nohome", "/"}},
		{full, "4294967294", User{4294967294, 0, nil, "", "/"}},
		{empty, "", User{0, 0, nil, "", "/"}},
		{empty, "7:8", User{7, 8, nil, "", "/"}},
	} {
		got, err := Lookup(tt.root, tt.spec)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, %v; want %+v", tt.spec, got, err, tt.want)
		}
	}
	for _, tt := range []struct {
		root  *os.File
		spec  string
		is    func(error) bool
		words string
	}{
		{full, "ghost", errdefs.IsNotFound, `user "ghost": not in the image's /etc/passwd`},
		{empty, "app", errdefs.IsNotFound, "not in the image's /etc/passwd"},
		{full, "app:ghosts", errdefs.IsNotFound, `group "ghosts" is not in the image's /etc/group`},
		{full, "-1", errdefs.IsInvalidArgument, "out of range"},
		{full, "4294967295", errdefs.IsInvalidArgument, "out of range"},
		{full, "99999999999999999999", errdefs.IsInvalidArgument, "out of range"},
		{full, "1:4294967295", errdefs.IsInvalidArgument, "out of range"},
		{full, "big", errdefs.IsInvalidArgument, "out of range"},
		{full, ":", errdefs.IsInvalidArgument, "want USER"},
		{full, "app:", errdefs.IsInvalidArgument, "want USER"},
		{full, ":5", errdefs.IsInvalidArgument, "want USER"},
		{full, "a:b:c", errdefs.IsInvalidArgument, "want USER"},
	} {
		_, err := Lookup(tt.root, tt.spec)
		if !tt.is(err) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%q: %v, want %q", tt.spec, err, tt.words)
		}
	}
}

// TestHostileImage tries the tricks an image can play with its files.
func TestHostileImage(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("spy:x:77:77::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(etc string) error{
		"absolute link out": func(etc string) error { return os.Symlink(outside, etc+"/passwd") },
		"relative link out": func(etc string) error { return os.Symlink(strings.Repeat("../", 40)+outside[1:], etc+"/passwd") },
	} {
		root := image(t, map[string]string{"etc/x": ""})
		if err := plant(root.Name() + "/etc"); err != nil {
			t.Fatal(err)
		}
		if _, err := Lookup(root, "spy"); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v, want not found", name, err)
		}
	}
	for name, plant := range map[string]func(etc string) error{
		"fifo":      func(etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) },
		"device":    func(etc string) error { return unix.Mknod(etc+"/passwd", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"directory": func(etc string) error { return os.Mkdir(etc+"/passwd", 0o755) },
		"proc link": func(etc string) error { return os.Symlink("/proc/self/fd/0", etc+"/passwd") },
		"endless": func(etc string) error {
			f, err := os.Create(etc + "/passwd")
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(1 << 40)
		},
		"one long line": func(etc string) error { return os.WriteFile(etc+"/passwd", []byte(strings.Repeat("x", 1<<20)), 0o644) },
	} {
		root := image(t, map[string]string{"etc/x": ""})
		if err := plant(root.Name() + "/etc"); err != nil {
			t.Fatal(err)
		}
		_, err := Lookup(root, "0")
		if name == "proc link" {
			if err != nil {
				t.Errorf("a link to what isn't in the image: %v, want root", err)
			}
			continue
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want invalid argument", name, err)
		}
	}
}

func FuzzLookup(f *testing.F) {
	f.Add(passwd, group, "app:docker")
	f.Add("a:b:c\n:::::::\n", "x:::\n", "a")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		dir := t.TempDir()
		os.Mkdir(dir+"/etc", 0o755)
		os.WriteFile(dir+"/etc/passwd", []byte(passwd), 0o644)
		os.WriteFile(dir+"/etc/group", []byte(group), 0o644)
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u, err := Lookup(root, spec)
		if err == nil && (u.UID > maxID || u.GID > maxID || !strings.HasPrefix(u.Home, "/")) {
			t.Fatalf("%+v", u)
		}
	})
}
