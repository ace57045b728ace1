package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"unipod.dev/unipod/test/isolate"
)

// TestMain runs the tests in a mount namespace of their own: what they mount
// is seen by nobody and ends with them.
func TestMain(m *testing.M) {
	isolate.Namespaces(syscall.CLONE_NEWNS)
	os.Exit(m.Run())
}

// objects is a Source.
type objects struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
}

func (o *objects) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	if cm, ok := o.configMaps[namespace+"/"+name]; ok {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
}

func (o *objects) Secret(namespace, name string) (*v1.Secret, error) {
	if s, ok := o.secrets[namespace+"/"+name]; ok {
		return s, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
}

// of is a Config's Source: the same for all pods.
func (o *objects) of(*v1.Pod) Source { return o }

func newManager(t *testing.T, src *objects) *Manager {
	t.Helper()
	if src == nil {
		src = &objects{}
	}
	m, err := New(Config{Dir: filepath.Join(t.TempDir(), "pods"), Source: src.of,
		Allocatable: v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourceCPU: resource.MustParse("2")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.CleanOrphans(context.Background(), nil); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
		if left := mountsBelow(t, m.Dir); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
		if left, _ := os.ReadDir(m.Dir); len(left) > 0 {
			t.Errorf("directories are left: %v", left)
		}
	})
	return m
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points
}

// newPod is a pod whose only container mounts every volume at /v/<name>.
func newPod(volumes ...v1.Volume) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "uid-1", Labels: map[string]string{"app": "web"}}}
	c := v1.Container{Name: "main", Resources: v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}}}
	for _, v := range volumes {
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: v.Name, MountPath: "/v/" + v.Name})
	}
	pod.Spec.Containers, pod.Spec.Volumes = []v1.Container{c}, volumes
	return pod
}

func ptr[T any](v T) *T { return &v }

func setup(t *testing.T, m *Manager, pod *v1.Pod) map[string]Mounted {
	t.Helper()
	mounted, err := m.Setup(context.Background(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return mounted
}

// tree lists a directory as "mode uid:gid name content", sorted, without our
// own "..<time>" names.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	data, _ := os.Readlink(filepath.Join(dir, dataLink))
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		if data != "" {
			rel = strings.Replace(rel, data, "..DATA", 1)
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%v %d:%d %s", info.Mode(), st.Uid, st.Gid, rel)
		switch {
		case info.Mode().IsRegular():
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", text)
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			if data != "" {
				target = strings.Replace(target, data, "..DATA", 1)
			}
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func expectTree(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s:\n got\n\t%s\n want\n\t%s", dir, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestEmptyDir(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(
		v1.Volume{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}}},
	)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(2000))}
	mounted := setup(t, m, pod)
	disk, mem := mounted["disk"].HostPath, mounted["mem"].HostPath
	if want := filepath.Join(m.Dir, "uid-1/volumes/kubernetes.io~empty-dir/disk"); disk != want {
		t.Errorf("disk is at %s, want %s", disk, want)
	}
	expectTree(t, disk, "dgrwxrwxrwx 0:2000 ")
	expectTree(t, mem, "dgtrwxrwxrwx 0:2000 ")
	var st unix.Statfs_t
	if err := unix.Statfs(mem, &st); err != nil || st.Type != unix.TMPFS_MAGIC || int64(st.Blocks)*st.Bsize != 1<<20 {
		t.Errorf("mem: %v, type %x, %d bytes; want tmpfs of 1 MiB", err, st.Type, int64(st.Blocks)*st.Bsize)
	}

	// What the pod writes outlives another Setup, of this process or the next.
	for _, dir := range []string{disk, mem} {
		if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next, err := New(m.Config)
	if err != nil {
		t.Fatal(err)
	}
	again := setup(t, next, pod)
	if !maps.Equal(mounted, again) {
		t.Errorf("got %v, then %v", mounted, again)
	}
	for _, dir := range []string{disk, mem} {
		info, err := os.Stat(filepath.Join(dir, "file"))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	if n := len(mountsBelow(t, m.Dir)); n != 1 {
		t.Errorf("%d mounts, want 1", n)
	}

	usages, err := m.Usages(context.Background(), pod)
	if err != nil || len(usages) != 2 {
		t.Fatal(usages, err)
	}
	if u := usages[0]; u.Volume != "disk" || u.Bytes < 8192 || u.Bytes > 64<<10 || u.Inodes != 2 || u.Memory || u.Exceeded() != "" {
		t.Errorf("disk: %+v", u)
	}
	if u := usages[1]; u.Volume != "mem" || u.Bytes != 8192 || u.Inodes != 2 || !u.Memory {
		t.Errorf("mem: %+v", u)
	}
	// A pod that is resized in place gets its memory volumes resized, but not
	// below what is in them.
	pod.Spec.Volumes[1].EmptyDir.SizeLimit = ptr(resource.MustParse("2Mi"))
	setup(t, m, pod)
	if err := unix.Statfs(mem, &st); err != nil || int64(st.Blocks)*st.Bsize != 2<<20 {
		t.Errorf("resized: %v, %d bytes", err, int64(st.Blocks)*st.Bsize)
	}
	pod.Spec.Volumes[1].EmptyDir.SizeLimit = ptr(resource.MustParse("4Ki"))
	if _, err := m.Setup(context.Background(), pod); !errors.Is(err, unix.EINVAL) {
		t.Errorf("shrunk below its content: %v", err)
	}
	usages[0].Limit = ptr(resource.MustParse("1Ki"))
	if got := usages[0].Exceeded(); got != `Usage of EmptyDir volume "disk" exceeds the limit "1Ki". ` {
		t.Errorf("got %q", got)
	}
}

func TestMemorySize(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod()
	for _, c := range []struct {
		limit *resource.Quantity
		pod   string
		want  int64
	}{
		{nil, "", 1 << 30},
		{nil, "64Mi", 64 << 20},
		{ptr(resource.MustParse("1Mi")), "64Mi", 1 << 20},
		{ptr(resource.MustParse("128Mi")), "64Mi", 64 << 20},
		{ptr(resource.MustParse("2Gi")), "", 1 << 30},
	} {
		pod.Spec.Containers[0].Resources.Limits = nil
		if c.pod != "" {
			pod.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse(c.pod)}
		}
		if got := m.memorySize(pod, c.limit); got != c.want {
			t.Errorf("limit %v in a pod of %q: got %d, want %d", c.limit, c.pod, got, c.want)
		}
	}
}

func TestHugePages(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(v1.Volume{Name: "huge", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumHugePages}}})
	_, err := m.Setup(context.Background(), pod)
	want := `MountVolume.SetUp failed for volume "huge" : medium HugePages: hugePages storage requested, but there is no resource request for huge pages`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("the kernel has no 2 MiB pages")
	}
	pod.Spec.Containers[0].Resources.Requests = v1.ResourceList{"hugepages-2Mi": resource.MustParse("2Mi")}
	dir := setup(t, m, pod)["huge"].HostPath
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.HUGETLBFS_MAGIC || st.Bsize != 2<<20 {
		t.Errorf("%v: type %x, page size %d", err, st.Type, st.Bsize)
	}
	setup(t, m, pod)
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		kind v1.HostPathType
		want string
	}{
		{dir, v1.HostPathUnset, ""},
		{dir + "/missing", v1.HostPathUnset, ""},
		{dir, v1.HostPathDirectory, ""},
		{file, v1.HostPathFile, ""},
		{"/dev/null", v1.HostPathCharDev, ""},
		{dir + "/new/dir", v1.HostPathDirectoryOrCreate, ""},
		{dir + "/newfile", v1.HostPathFileOrCreate, ""},
		{file, v1.HostPathDirectory, "hostPath type check failed: " + file + " is not a directory, it's a File"},
		{file, v1.HostPathDirectoryOrCreate, "hostPath type check failed: " + file + " is not a directory, it's a File"},
		{dir, v1.HostPathFileOrCreate, "hostPath type check failed: " + dir + " is not a file, it's a Directory"},
		{"/dev/null", v1.HostPathBlockDev, "hostPath type check failed: /dev/null is not a block device, it's a CharDevice"},
		{dir + "/missing", v1.HostPathSocket, "hostPath type check failed, " + dir + `/missing is not a socket file, unable to determine its type: path "` + dir + `/missing" does not exist`},
		{dir + "/../x", v1.HostPathUnset, "invalid HostPath `" + dir + "/../x`: must not contain '..'"},
	} {
		mounted, err := setupHostPath(&v1.HostPathVolumeSource{Path: c.path, Type: &c.kind})
		if got := fmt.Sprint(err); c.want == "" && err != nil || c.want != "" && got != c.want {
			t.Errorf("%s as %q:\n got  %s\n want %s", c.path, c.kind, got, c.want)
		} else if err == nil && mounted.HostPath != c.path {
			t.Errorf("%s: got %+v", c.path, mounted)
		}
	}
	for _, p := range []string{"new/dir", "newfile"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			t.Error(err)
		}
	}
}

func TestMissingObjects(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(
		v1.Volume{Name: "a", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "b", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, DefaultMode: ptr(int32(0o644))}}},
		v1.Volume{Name: "c", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o644))}}},
		v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{}}},
	)
	mounted, err := m.Setup(context.Background(), pod)
	want := `MountVolume.SetUp failed for volume "b" : configmap "cm" not found
MountVolume.SetUp failed for volume "c" : secret "s" not found
MountVolume.SetUp failed for volume "d" : no volume plugin matched: this type of volume is not supported: not implemented`
	if err == nil || err.Error() != want || mounted != nil {
		t.Errorf("got %v, %v\nwant %s", mounted, err, want)
	}
	if !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Error("the error has no kind")
	}
	pod.Spec.Volumes = pod.Spec.Volumes[:3]
	pod.Spec.Volumes[1].ConfigMap.Optional = ptr(true)
	pod.Spec.Volumes[2].Secret.Optional = ptr(true)
	dir := setup(t, m, pod)["b"].HostPath
	expectTree(t, dir, "Lrwxrwxrwx 0:0 ..data -> ..DATA", "drwxr-xr-x 0:0 ..DATA", "drwxrwxrwx 0:0 ")
}

func TestBadUID(t *testing.T) {
	m := newManager(t, nil)
	for _, uid := range []types.UID{"", ".", "..", "a/b", "../x", types.UID(strings.Repeat("x", 300))} {
		pod := newPod()
		pod.UID = uid
		if _, err := m.Setup(context.Background(), pod); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Setup of %q: got %v", uid, err)
		}
		if err := m.Teardown(context.Background(), uid); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Teardown of %q: got %v", uid, err)
		}
	}
}
