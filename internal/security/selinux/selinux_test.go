package selinux

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLevels(t *testing.T) {
	for l, want := range map[string]bool{
		"s0": true, "s0:c1": true, "s0:c1,c2": true, "s0:c1.c7": true, "s0-s0:c0.c1023": true, "s15:c100,c200.c300": true,
		"c1,c2": false, "s0:": false, "s0:c12345": false, "s0:c1,": false, "s0 ": false, "s0:c1\n": false,
	} {
		_, _, err := Labels(&runtimeapi.SELinuxOption{Level: l})
		if want && err != nil && errdefs.IsInvalidArgument(err) && strings.Contains(err.Error(), "want something like") {
			t.Errorf("%q was refused: %v", l, err)
		}
		if !want && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want invalid argument", l, err)
		}
	}
}

func TestDisabled(t *testing.T) {
	if Enabled() {
		t.Skip("SELinux is enabled here")
	}
	p, m, err := Labels(&runtimeapi.SELinuxOption{Type: "container_t"})
	if p != "" || m != "" || err != nil {
		t.Errorf("%q, %q, %v", p, m, err)
	}
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Relabel(root, "x"); err != nil {
		t.Error(err)
	}
}

// TestRelabel walks a tree: the kernel keeps the attribute without SELinux.
func TestRelabel(t *testing.T) {
	dir := t.TempDir()
	outside := dir + "/outside"
	volume := dir + "/volume"
	for _, d := range []string{volume + "/a/b", outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{volume + "/a/b/file", outside + "/file"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(volume+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, volume+"/link"); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(volume, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), volume)
	defer f.Close()
	const want = "system_u:object_r:container_file_t:s0:c1,c2"
	if err := relabel(f, want); err != nil {
		t.Fatal(err)
	}
	for p, labelled := range map[string]bool{
		volume: true, volume + "/a": true, volume + "/a/b": true, volume + "/a/b/file": true, volume + "/fifo": true,
		volume + "/link": true, outside: false, outside + "/file": false,
	} {
		buf := make([]byte, 128)
		n, err := unix.Lgetxattr(p, "security.selinux", buf)
		got := ""
		if err == nil {
			got = strings.TrimRight(string(buf[:n]), "\x00")
		}
		if labelled != (got == want) {
			t.Errorf("%s has label %q (%v), want it labelled: %v", p, got, err, labelled)
		}
	}
}
