package device

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lstat reads a file's metadata in a detached mount.
func lstat(t *testing.T, dir *os.File, name string) (unix.Stat_t, error) {
	t.Helper()
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	return st, err
}

func TestMake(t *testing.T) {
	old := unix.Umask(0o77) // a careless node's umask must not show
	defer unix.Umask(old)
	dev, err := Make(Options{Console: true, Nodes: []Node{
		{Path: "/dev/mapper/deep/kmsg", Type: 'c', Major: 1, Minor: 11, Mode: 0o640, UID: 3, GID: 4},
		{Path: "/dev/disk", Type: 'b', Major: 7, Minor: 9, Mode: 0o600},
		{Path: "/dev/zero", Type: 'c', Major: 1, Minor: 3, Mode: 0o600},
		{Path: "/elsewhere", Type: 'c', Major: 1, Minor: 3, Mode: 0o600},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for _, tt := range []struct {
		name     string
		mode     uint32
		rdev     uint64
		uid, gid uint32
	}{
		{"", unix.S_IFDIR | 0o755, 0, 0, 0},
		{"null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3), 0, 0},
		{"full", unix.S_IFCHR | 0o666, unix.Mkdev(1, 7), 0, 0},
		{"random", unix.S_IFCHR | 0o666, unix.Mkdev(1, 8), 0, 0},
		{"urandom", unix.S_IFCHR | 0o666, unix.Mkdev(1, 9), 0, 0},
		{"tty", unix.S_IFCHR | 0o666, unix.Mkdev(5, 0), 0, 0},
		{"zero", unix.S_IFCHR | 0o600, unix.Mkdev(1, 3), 0, 0}, // the pod's own
		{"mapper/deep/kmsg", unix.S_IFCHR | 0o640, unix.Mkdev(1, 11), 3, 4},
		{"disk", unix.S_IFBLK | 0o600, unix.Mkdev(7, 9), 0, 0},
		{"console", unix.S_IFREG | 0o600, 0, 0, 0},
	} {
		st, err := lstat(t, dev, tt.name)
		if err != nil {
			t.Errorf("/dev/%s: %v", tt.name, err)
			continue
		}
		if st.Mode != tt.mode || st.Rdev != tt.rdev || st.Uid != tt.uid || st.Gid != tt.gid {
			t.Errorf("/dev/%s: mode %o rdev %#x owner %d:%d, want %o %#x %d:%d", tt.name, st.Mode, st.Rdev, st.Uid, st.Gid, tt.mode, tt.rdev, tt.uid, tt.gid)
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if st, err := lstat(t, dev, name); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("/dev/%s: %o, %v", name, st.Mode, err)
		}
	}
	for _, l := range links {
		buf := make([]byte, 64)
		n, err := unix.Readlinkat(int(dev.Fd()), l[1], buf)
		if err != nil || string(buf[:n]) != l[0] {
			t.Errorf("/dev/%s -> %s, %v", l[1], buf[:max(n, 0)], err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dev.Fd()), &fs); err != nil || fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&(unix.ST_NODEV|unix.ST_NOEXEC) != 0 {
		t.Errorf("mount flags %#x, %v", fs.Flags, err)
	}
	if size := int64(fs.Blocks) * fs.Bsize; size != 64<<20 {
		t.Errorf("size %d", size)
	}
	// The node works as a device.
	fd, err := unix.Openat(int(dev.Fd()), "full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to full: %v, want ENOSPC", err)
	}
}

func TestMakeInUserNamespace(t *testing.T) {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 10}}
	dev, err := Make(Options{UIDMap: m, GIDMap: m, Console: true, Nodes: []Node{
		{Path: "/dev/a", Type: 'c', Major: 1, Minor: 3, Mode: 0o660, UID: 3, GID: 7},
		{Path: "/dev/b", Type: 'c', Major: 1, Minor: 3, Mode: 0o660, UID: 1000, GID: 1000},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for name, want := range map[string][2]uint32{
		"": {100000, 100000}, "null": {100000, 100000}, "pts": {100000, 100000}, "console": {100000, 100000},
		"a": {100003, 100007}, "b": {100000, 100000},
	} {
		if st, err := lstat(t, dev, name); err != nil || st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("/dev/%s is %d:%d's, want %v (%v)", name, st.Uid, st.Gid, want, err)
		}
	}
}

func TestBadNodes(t *testing.T) {
	for _, n := range []Node{
		{Path: "/dev/../etc/passwd", Type: 'c'},
		{Path: "/dev/x", Type: 'p'},
		{Path: "/dev/pts/0", Type: 'c'},
		{Path: "/dev/ptmx", Type: 'c'},
		{Path: "/dev/null/x", Type: 'c'},
	} {
		dev, err := Make(Options{Nodes: []Node{n}})
		if n.Path == "/dev/../etc/passwd" && err == nil {
			// Not below /dev once cleaned: not Make's, and Mount refuses it.
			dev.Close()
			_, err = n.Mount()
		}
		if err == nil {
			t.Errorf("%+v was accepted", n)
		}
	}
}

func TestNodeMount(t *testing.T) {
	p := t.TempDir() + "/zero"
	if err := unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	nodes, err := FromHost(p, "/opt/zero", "rw")
	if err != nil {
		t.Fatal(err)
	}
	f, err := nodes[0].Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := lstat(t, f, ""); err != nil || st.Mode != unix.S_IFCHR|0o600 || st.Rdev != unix.Mkdev(1, 5) {
		t.Errorf("mode %o, rdev %#x, %v", st.Mode, st.Rdev, err)
	}
	// Another file in its place is not what was allowed.
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].Mount(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a node that changed: %v", err)
	}
}

func TestFromHost(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"a": 3, "sub/b": 5} {
		if err := unix.Mknod(dir+"/"+name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := FromHost(dir+"/link", "/dev/mine", "rw")
	if err != nil || len(got) != 1 || got[0] != (Node{Path: "/dev/mine", HostPath: dir + "/a", Type: 'c', Major: 1, Minor: 3, Mode: 0o600, Access: "rw"}) {
		t.Errorf("link: %+v, %v", got, err)
	}
	got, err = FromHost(dir, "/dev/all", "r")
	if err != nil || len(got) != 2 || got[0].Path != "/dev/all/a" || got[1].Path != "/dev/all/sub/b" {
		t.Errorf("directory: %+v, %v", got, err)
	}
	for _, tt := range []struct {
		path, access string
		is           func(error) bool
	}{
		{dir + "/file", "rw", errdefs.IsInvalidArgument},
		{dir + "/missing", "rw", errdefs.IsNotFound},
		{dir + "/a", "rx", errdefs.IsInvalidArgument},
		{dir + "/a", "", errdefs.IsInvalidArgument},
	} {
		if _, err := FromHost(tt.path, "", tt.access); !tt.is(err) || !strings.Contains(err.Error(), filepath.Base(tt.path)) {
			t.Errorf("%s %q: %v", filepath.Base(tt.path), tt.access, err)
		}
	}
}

func TestAll(t *testing.T) {
	nodes, err := All()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, n := range nodes {
		seen[n.Path] = true
		if strings.HasPrefix(n.Path, "/dev/pts/") || strings.HasPrefix(n.Path, "/dev/shm/") {
			t.Errorf("%s is not the host's to give", n.Path)
		}
	}
	if !seen["/dev/null"] {
		t.Errorf("no /dev/null in %v", nodes)
	}
	dev, err := Make(Options{Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	dev.Close()
}

func TestPTY(t *testing.T) {
	a, err := Devpts(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := Devpts([]syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	small, err := Devpts([]syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	for _, tt := range []struct {
		pts *os.File
		gid uint32
	}{{a, 5}, {b, 100005}, {small, 0}} {
		master, slave, err := OpenPTY(tt.pts)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(slave.Fd()), &st); err != nil || st.Gid != tt.gid || st.Mode != unix.S_IFCHR|0o620 {
			t.Errorf("terminal: mode %o, group %d, want %d (%v)", st.Mode, st.Gid, tt.gid, err)
		}
		// Each instance numbers its own.
		if n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN); err != nil || n != 0 {
			t.Errorf("terminal number %d, %v", n, err)
		}
		if _, err := slave.WriteString("hello\n"); err != nil {
			t.Error(err)
		}
		if line, err := bufio.NewReader(master).ReadString('\n'); err != nil || line != "hello\r\n" {
			t.Errorf("%q, %v", line, err)
		}
		slave.Close()
		master.Close()
	}
}

func BenchmarkMake(b *testing.B) {
	for b.Loop() {
		f, err := Make(Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Close()
		b.StartTimer()
	}
}
