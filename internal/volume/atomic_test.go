package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

func TestConfigMapVolume(t *testing.T) {
	src := &objects{configMaps: map[string]*v1.ConfigMap{"ns/cm": {
		Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0xff}}}}}
	m := newManager(t, src)
	pod := newPod(v1.Volume{Name: "cfg", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{
		LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, DefaultMode: ptr(int32(0o640))}}})
	// Another volume is mounted below this one.
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts,
		v1.VolumeMount{Name: "other", MountPath: "/v/cfg/nested/dir"}, v1.VolumeMount{Name: "other", MountPath: "/v/cfg/nested/dir/deeper"})
	mounted := setup(t, m, pod)["cfg"]
	if want := (Mounted{HostPath: filepath.Join(m.Dir, "uid-1/volumes/kubernetes.io~configmap/cfg"), ReadOnly: true, Relabel: true}); mounted != want {
		t.Errorf("got %+v, want %+v", mounted, want)
	}
	dir := mounted.HostPath
	expectTree(t, dir,
		"-rw-r----- 0:0 ..DATA/a \"1\"",
		"-rw-r----- 0:0 ..DATA/b \"2\"",
		"-rw-r----- 0:0 ..DATA/bin \"\\xff\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 a -> ..data/a",
		"Lrwxrwxrwx 0:0 b -> ..data/b",
		"Lrwxrwxrwx 0:0 bin -> ..data/bin",
		"drwxr-xr-x 0:0 ..DATA",
		"drwxr-xr-x 0:0 nested",
		"drwxr-xr-x 0:0 nested/dir",
		"drwxrwxrwx 0:0 ",
	)
	first, _ := os.Readlink(filepath.Join(dir, dataLink))

	// Nothing changed: nothing is written.
	setup(t, m, pod)
	if again, _ := os.Readlink(filepath.Join(dir, dataLink)); again != first {
		t.Errorf("unchanged content was written again: %s, then %s", first, again)
	}

	// A key changes, one goes, one comes.
	src.configMaps["ns/cm"] = &v1.ConfigMap{Data: map[string]string{"a": "10", "c": "3"}}
	setup(t, m, pod)
	expectTree(t, dir,
		"-rw-r----- 0:0 ..DATA/a \"10\"",
		"-rw-r----- 0:0 ..DATA/c \"3\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 a -> ..data/a",
		"Lrwxrwxrwx 0:0 c -> ..data/c",
		"drwxr-xr-x 0:0 ..DATA",
		"drwxr-xr-x 0:0 nested",
		"drwxr-xr-x 0:0 nested/dir",
		"drwxrwxrwx 0:0 ",
	)

	// Items choose keys, paths and modes.
	pod.Spec.Volumes[0].ConfigMap.Items = []v1.KeyToPath{{Key: "a", Path: "deep/er/x", Mode: ptr(int32(0o400))}}
	setup(t, m, pod)
	expectTree(t, dir,
		"-r-------- 0:0 ..DATA/deep/er/x \"10\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 deep -> ..data/deep",
		"drwxr-xr-x 0:0 ..DATA",
		"drwxr-xr-x 0:0 ..DATA/deep",
		"drwxr-xr-x 0:0 ..DATA/deep/er",
		"drwxr-xr-x 0:0 nested",
		"drwxr-xr-x 0:0 nested/dir",
		"drwxrwxrwx 0:0 ",
	)

	// A key that isn't there is an error, and what was shown stays.
	before := tree(t, dir)
	pod.Spec.Volumes[0].ConfigMap.Items[0].Key = "nope"
	_, err := m.Setup(context.Background(), pod)
	if want := `MountVolume.SetUp failed for volume "cfg" : configmap references non-existent config key: nope`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if after := tree(t, dir); !slices.Equal(before, after) {
		t.Errorf("a failed refresh changed the volume: %q", after)
	}
}

func TestSecretIsOnTmpfs(t *testing.T) {
	m := newManager(t, &objects{secrets: map[string]*v1.Secret{"ns/s": {Data: map[string][]byte{"key": []byte("hunter2")}}}})
	pod := newPod(v1.Volume{Name: "s", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o600))}}})
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(3000))}
	dir := setup(t, m, pod)["s"].HostPath
	expectTree(t, dir,
		"-rw-r----- 0:3000 ..DATA/key \"hunter2\"",
		"Lrwxrwxrwx 0:3000 ..data -> ..DATA",
		"Lrwxrwxrwx 0:3000 key -> ..data/key",
		"dgrwxr-xr-x 0:3000 ..DATA",
		"dgtrwxrwxrwx 0:3000 ",
	)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("%v: type %x, want tmpfs", err, st.Type)
	}
	// Nothing of it is on the disk below.
	if err := m.Teardown(context.Background(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Teardown: %v", err)
	}
}

func TestDownwardAndProjected(t *testing.T) {
	src := &objects{
		configMaps: map[string]*v1.ConfigMap{"ns/cm": {Data: map[string]string{"k": "v"}}},
		secrets:    map[string]*v1.Secret{"ns/s": {Data: map[string][]byte{"p": []byte("q")}}},
	}
	m := newManager(t, src)
	items := []v1.DownwardAPIVolumeFile{
		{Path: "labels", FieldRef: &v1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels"}},
		{Path: "mem", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.memory"}, Mode: ptr(int32(0o444))},
		{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.cpu"}},
	}
	pod := newPod(
		v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: items, DefaultMode: ptr(int32(0o644))}}},
		v1.Volume{Name: "p", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o644)), Sources: []v1.VolumeProjection{
			{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, Items: []v1.KeyToPath{{Key: "k", Path: "x/k"}}}},
			{Secret: &v1.SecretProjection{LocalObjectReference: v1.LocalObjectReference{Name: "s"}}},
			{DownwardAPI: &v1.DownwardAPIProjection{Items: items[:1]}},
		}}}},
	)
	mounted := setup(t, m, pod)
	expectTree(t, mounted["d"].HostPath,
		"-r--r--r-- 0:0 ..DATA/mem \"67108864\"",
		"-rw-r--r-- 0:0 ..DATA/cpu \"2\"",
		"-rw-r--r-- 0:0 ..DATA/labels \"app=\\\"web\\\"\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 cpu -> ..data/cpu",
		"Lrwxrwxrwx 0:0 labels -> ..data/labels",
		"Lrwxrwxrwx 0:0 mem -> ..data/mem",
		"drwxr-xr-x 0:0 ..DATA",
		"dtrwxrwxrwx 0:0 ",
	)
	expectTree(t, mounted["p"].HostPath,
		"-rw-r--r-- 0:0 ..DATA/labels \"app=\\\"web\\\"\"",
		"-rw-r--r-- 0:0 ..DATA/p \"q\"",
		"-rw-r--r-- 0:0 ..DATA/x/k \"v\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 labels -> ..data/labels",
		"Lrwxrwxrwx 0:0 p -> ..data/p",
		"Lrwxrwxrwx 0:0 x -> ..data/x",
		"drwxr-xr-x 0:0 ..DATA",
		"drwxr-xr-x 0:0 ..DATA/x",
		"dtrwxrwxrwx 0:0 ",
	)

	// Tokens come from whoever issues them.
	token := v1.VolumeProjection{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}}
	pod.Spec.Volumes[1].Projected.Sources = []v1.VolumeProjection{token}
	if _, err := m.Setup(context.Background(), pod); err == nil || !strings.Contains(err.Error(), "no API server issues service account tokens here") {
		t.Errorf("got %v", err)
	}
	m.Token = func(context.Context, *v1.Pod, *v1.ServiceAccountTokenProjection) ([]byte, error) {
		return []byte("jwt"), nil
	}
	pod.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: ptr(int64(1234))}
	expectTree(t, setup(t, m, pod)["p"].HostPath,
		"-rw------- 1234:0 ..DATA/token \"jwt\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 token -> ..data/token",
		"drwxr-xr-x 0:0 ..DATA",
		"dtrwxrwxrwx 0:0 ",
	)
}

// TestWriteFilesAfterCrash leaves what each step of an interrupted write leaves
// and expects the next write to end well.
func TestWriteFilesAfterCrash(t *testing.T) {
	want := map[string]file{"a": {data: []byte("new"), mode: 0o644}, "d/b": {data: []byte("x"), mode: 0o644}}
	good := []string{
		"-rw-r--r-- 0:0 ..DATA/a \"new\"",
		"-rw-r--r-- 0:0 ..DATA/d/b \"x\"",
		"Lrwxrwxrwx 0:0 ..data -> ..DATA",
		"Lrwxrwxrwx 0:0 a -> ..data/a",
		"Lrwxrwxrwx 0:0 d -> ..data/d",
		"drwx------ 0:0 ",
		"drwxr-xr-x 0:0 ..DATA",
		"drwxr-xr-x 0:0 ..DATA/d",
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]func(dir string){
		"nothing yet":       func(string) {},
		"half a new dir":    func(d string) { must(os.MkdirAll(d+"/..2020.x/d", 0o755)) },
		"stale new link":    func(d string) { must(os.Symlink("..2020.x", d+"/..data_tmp")) },
		"link to nothing":   func(d string) { must(os.Symlink("..2020.x", d+"/..data")) },
		"switched, no link": func(d string) { must(os.Mkdir(d+"/..2020.x", 0o755)); must(os.Symlink("..2020.x", d+"/..data")) },
		"old one not gone":  func(d string) { must(os.MkdirAll(d+"/..2019.x/dir", 0o700)) },
		"link of a lost key": func(d string) {
			must(os.Symlink("..data/gone", d+"/gone"))
		},
		// By a container with the power to write there.
		"data leads out": func(d string) { must(os.Symlink("/etc", d+"/..data")) },
		"data leads up":  func(d string) { must(os.Symlink("..", d+"/..data")) },
		"new is a dir":   func(d string) { must(os.MkdirAll(d+"/..data_tmp/x", 0o755)) },
		"data is a dir":  func(d string) { must(os.MkdirAll(d+"/..data/x", 0o755)) },
		"old is a link":  func(d string) { must(os.Symlink("/etc", d+"/..2020.x")); must(os.Symlink("..2020.x", d+"/..data")) },
		"key is a fifo": func(d string) {
			must(os.Mkdir(d+"/..2020.x", 0o755))
			must(unix.Mkfifo(d+"/..2020.x/a", 0o600))
			must(os.Symlink("..2020.x", d+"/..data"))
		},
		"more than ours": func(d string) {
			must(os.MkdirAll(d+"/..2020.x/evil", 0o755))
			must(os.Symlink("..2020.x", d+"/..data"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "v")
			must(os.Mkdir(dir, 0o700))
			damage(dir)
			root, err := openDir(dir)
			must(err)
			defer root.Close()
			must(writeFiles(root, want, nil))
			expectTree(t, dir, good...)
		})
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Fatal("the host's /etc was touched:", err)
	}
}

func TestPathsOfFiles(t *testing.T) {
	for name, want := range map[string]string{
		"":                       "invalid path: must not be empty",
		"/a":                     "invalid path: must be relative path: /a",
		"a/../b":                 "invalid path: must not contain '..': a/../b",
		"..data":                 "invalid path: must not start with '..': ..data",
		strings.Repeat("x", 256): "invalid path: filenames must be less than or equal to 255 characters",
	} {
		_, err := cleanPaths(map[string]file{name: {}})
		if err == nil || err.Error() != want {
			t.Errorf("%.20q: got %v, want %s", name, err, want)
		}
	}
	if _, err := cleanPaths(map[string]file{"a/..b": {}, "a..": {}}); err != nil {
		t.Error(err)
	}
}
