package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestTeardownOfHostileContent fills an emptyDir with all that could lead a
// careless removal astray.
func TestTeardownOfHostileContent(t *testing.T) {
	m := newManager(t, nil)
	host := t.TempDir()
	precious := filepath.Join(host, "precious")
	if err := os.WriteFile(precious, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := newPod(v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	dir := setup(t, m, pod)["e"].HostPath
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink(host, filepath.Join(dir, "link")))
	must(os.MkdirAll(filepath.Join(dir, "bound"), 0o755))
	must(unix.Mount(host, filepath.Join(dir, "bound"), "", unix.MS_BIND, ""))
	must(unix.Mount(host, filepath.Join(dir, "bound"), "", unix.MS_BIND, "")) // twice
	must(os.WriteFile(filepath.Join(dir, "boundfile"), nil, 0o600))
	must(unix.Mount(precious, filepath.Join(dir, "boundfile"), "", unix.MS_BIND, ""))
	must(os.Mkdir(filepath.Join(dir, "locked"), 0o000))
	must(os.WriteFile(filepath.Join(dir, "locked", "file"), nil, 0o000))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(os.WriteFile(filepath.Join(dir, strings.Repeat("n", 255)), nil, 0o600))
	deep(t, dir, 5000)

	// What the kubelet's eviction would measure, it can measure here too.
	usages, err := m.Usages(context.Background(), pod)
	if err != nil || usages[0].Inodes < 5000 {
		t.Errorf("measuring: %v, %+v", err, usages)
	}
	must(m.Teardown(context.Background(), pod.UID))
	if left := mountsBelow(t, m.Dir); len(left) != 0 {
		t.Errorf("mounts are left: %q", left)
	}
	if _, err := os.Lstat(filepath.Join(m.Dir, "uid-1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pod's directory: %v", err)
	}
	if text, err := os.ReadFile(precious); err != nil || string(text) != "keep" {
		t.Errorf("the host's file: %q, %v", text, err)
	}
	must(m.Teardown(context.Background(), pod.UID)) // again
}

// deep makes a chain of directories that is deeper than a path can be long.
func deep(t *testing.T, dir string, depth int) {
	t.Helper()
	cur, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(int(cur.Fd()), "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := openat2(cur, "d", unix.O_RDONLY|unix.O_DIRECTORY, within)
		cur.Close()
		if err != nil {
			t.Fatal(err)
		}
		cur = next
	}
	cur.Close()
}

// TestTeardownOfHostPaths mounts parts of the host by subPath: what is in them
// stays.
func TestTeardownOfHostPaths(t *testing.T) {
	m := newManager(t, nil)
	host := t.TempDir()
	if err := os.MkdirAll(filepath.Join(host, "dir/below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := newPod(v1.Volume{Name: "h", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host}}})
	c := &pod.Spec.Containers[0]
	c.VolumeMounts = []v1.VolumeMount{{Name: "h", MountPath: "/d", SubPath: "dir"}, {Name: "h", MountPath: "/f", SubPath: "file"}, {Name: "h", MountPath: "/n", SubPath: "new/dir"}}
	if _, err := m.Mounts(pod, c, MountOptions{Volumes: setup(t, m, pod)}); err != nil {
		t.Fatal(err)
	}
	if n := len(mountsBelow(t, m.Dir)); n != 3 {
		t.Fatalf("%d mounts, want 3", n)
	}
	before := tree(t, host)
	if err := m.Teardown(context.Background(), pod.UID); err != nil {
		t.Fatal(err)
	}
	expectTree(t, host, before...)
	if left := mountsBelow(t, m.Dir); len(left) != 0 {
		t.Errorf("mounts are left: %q", left)
	}
}

func TestTeardownLeavesOthersFiles(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	setup(t, m, pod)
	record := filepath.Join(m.Dir, "uid-1", "record.json")
	if err := os.WriteFile(record, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Teardown(context.Background(), pod.UID); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(filepath.Join(m.Dir, "uid-1"))
	if len(entries) != 1 || entries[0].Name() != "record.json" {
		t.Errorf("left: %v", entries)
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
}

func TestCleanOrphans(t *testing.T) {
	m := newManager(t, nil)
	for i := range 3 {
		pod := newPod(v1.Volume{Name: "m", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}})
		pod.UID = types.UID(fmt.Sprint("uid-", i))
		setup(t, m, pod)
	}
	next, err := New(m.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.CleanOrphans(context.Background(), map[types.UID]bool{"uid-1": true}); err != nil {
		t.Fatal(err)
	}
	if left := mountsBelow(t, m.Dir); len(left) != 1 || !strings.Contains(left[0], "uid-1") {
		t.Errorf("mounts: %q", left)
	}
}
