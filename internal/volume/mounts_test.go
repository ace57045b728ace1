package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// show prints a mount without what is random in it.
func show(m *Manager, mounts []*runtimeapi.Mount) string {
	var b strings.Builder
	for _, mt := range mounts {
		host := strings.Replace(mt.HostPath, m.Dir, "DIR", 1)
		if strings.Contains(host, "/containers/") {
			host = filepath.Dir(host) + "/RANDOM"
		}
		if mt.Image != nil {
			host = "image " + mt.Image.Image + " " + mt.ImageSubPath
		}
		fmt.Fprintf(&b, "%s <- %s", mt.ContainerPath, host)
		if mt.Readonly {
			b.WriteString(" ro")
		}
		if mt.RecursiveReadOnly {
			b.WriteString(" recursive")
		}
		if mt.SelinuxRelabel {
			b.WriteString(" relabel")
		}
		if mt.Propagation != 0 {
			b.WriteString(" " + mt.Propagation.String())
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestMounts(t *testing.T) {
	m := newManager(t, &objects{configMaps: map[string]*v1.ConfigMap{"ns/cm": {Data: map[string]string{"k": "v"}}}})
	m.SELinux, m.RecursiveReadOnly = true, true
	host := t.TempDir()
	pod := newPod(
		v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "h", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host}}},
		v1.Volume{Name: "c", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, DefaultMode: ptr(int32(0o644))}}},
		v1.Volume{Name: "i", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "data:1"}}},
	)
	c := &pod.Spec.Containers[0]
	c.TerminationMessagePath = "/dev/termination-log"
	c.VolumeMounts = []v1.VolumeMount{
		{Name: "e", MountPath: "/e"},
		{Name: "e", MountPath: "rel/e", SubPathExpr: "logs/$(POD)"},
		{Name: "h", MountPath: "/h", ReadOnly: true, RecursiveReadOnly: ptr(v1.RecursiveReadOnlyIfPossible)},
		{Name: "h", MountPath: "/hb", MountPropagation: ptr(v1.MountPropagationBidirectional)},
		{Name: "c", MountPath: "/c"},
		{Name: "c", MountPath: "/etc/k", SubPath: "k"},
		{Name: "i", MountPath: "/i", SubPath: "sub"},
	}
	o := MountOptions{Volumes: setup(t, m, pod), Env: map[string]string{"POD": "web"}, PodIPs: []string{"10.88.0.2"}, Hostname: "web",
		Images: map[string]*runtimeapi.ImageSpec{"i": {Image: "sha256:1"}}}
	mounts, err := m.Mounts(pod, c, o)
	if err != nil {
		t.Fatal(err)
	}
	want := `/e <- DIR/uid-1/volumes/kubernetes.io~empty-dir/e relabel
/rel/e <- DIR/uid-1/volume-subpaths/e/main/1 relabel
/h <- ` + host + ` ro recursive
/hb <- ` + host + ` PROPAGATION_BIDIRECTIONAL
/c <- DIR/uid-1/volumes/kubernetes.io~configmap/c ro relabel
/etc/k <- DIR/uid-1/volume-subpaths/c/main/5 ro relabel
/i <- image sha256:1 sub ro
/etc/hosts <- DIR/uid-1/etc-hosts relabel
/dev/termination-log <- DIR/uid-1/containers/main/RANDOM relabel
`
	if got := show(m, mounts); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if text, err := os.ReadFile(mounts[5].HostPath); err != nil || string(text) != "v" {
		t.Errorf("the bound key: %q, %v", text, err)
	}
	// The subPath was made with the volume's permissions.
	if info, err := os.Stat(filepath.Join(mounts[0].HostPath, "logs/web")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("the made subPath: %v, %v", info, err)
	}

	message := mounts[8].HostPath
	if info, err := os.Stat(message); err != nil || info.Mode() != 0o666 {
		t.Errorf("the termination log: %v, %v", info, err)
	}

	// The next run finds the same mounts and makes none anew.
	n := len(mountsBelow(t, m.Dir))
	again, err := m.Mounts(pod, c, o)
	if err != nil || show(m, again) != want {
		t.Errorf("again: %v\n%s", err, show(m, again))
	}
	if now := len(mountsBelow(t, m.Dir)); now != n {
		t.Errorf("%d mounts, then %d", n, now)
	}
	if err := m.TeardownContainer(t.Context(), pod.UID, "main"); err != nil {
		t.Fatal(err)
	}
	if left := mountsBelow(t, m.Dir); len(left) != 0 {
		t.Errorf("after TeardownContainer: %q", left)
	}
}

func TestMountErrors(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	volumes := setup(t, m, pod)
	for want, vm := range map[string]v1.VolumeMount{
		`cannot find volume "x" to mount into container "main"`:       {Name: "x"},
		`missing value for A, B`:                                      {Name: "e", SubPathExpr: "$(B)/$(A)/$(HOME)"},
		"error SubPath `/abs` must not be an absolute path":           {Name: "e", SubPath: "/abs"},
		"unable to provision SubPath `a/../b`: must not contain '..'": {Name: "e", SubPath: "a/../b"},
		`invalid MountPropagation mode: "Odd"`:                        {Name: "e", MountPropagation: ptr(v1.MountPropagationMode("Odd"))},
		`failed to resolve recursive read-only mode: volume "e" requested recursive read-only mode, but it is not read-only`:                                     {Name: "e", RecursiveReadOnly: ptr(v1.RecursiveReadOnlyEnabled)},
		`failed to resolve recursive read-only mode: volume "e" requested recursive read-only mode, but it is not supported by the runtime`:                      {Name: "e", ReadOnly: true, RecursiveReadOnly: ptr(v1.RecursiveReadOnlyEnabled)},
		`failed to resolve recursive read-only mode: volume "e" requested recursive read-only mode, but it is not compatible with propagation "HostToContainer"`: {Name: "e", ReadOnly: true, RecursiveReadOnly: ptr(v1.RecursiveReadOnlyEnabled), MountPropagation: ptr(v1.MountPropagationHostToContainer)},
	} {
		pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{vm}
		_, err := m.Mounts(pod, &pod.Spec.Containers[0], MountOptions{Volumes: volumes, Env: map[string]string{"HOME": "/"}})
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// TestSubPathCantLeaveTheVolume plants links where a subPath goes through.
func TestSubPathCantLeaveTheVolume(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	volumes := setup(t, m, pod)
	dir := volumes["e"].HostPath
	outside := t.TempDir()
	for name, target := range map[string]string{
		"absolute": outside,
		"up":       "../../../../..",
		"proc":     "/proc/self/root",
		"dangling": outside + "/new",
		"loop":     "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		for _, subPath := range []string{name, name + "/made"} {
			pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "e", MountPath: "/e", SubPath: subPath}}
			mounts, err := m.Mounts(pod, &pod.Spec.Containers[0], MountOptions{Volumes: volumes})
			want := `failed to prepare subPath for volumeMount "e" of container "main"`
			if sub, ok := errors.AsType[*SubPathError](err); !ok || err.Error() != want {
				t.Errorf("%s: got %v, %v", subPath, mounts, err)
			} else if !errors.Is(sub, unix.EXDEV) && !errors.Is(sub, unix.ELOOP) {
				t.Errorf("%s: the cause is %v", subPath, sub.Err)
			}
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("outside there is now %v", entries)
	}
	if left := mountsBelow(t, m.Dir); len(left) != 0 {
		t.Errorf("mounts: %q", left)
	}

}

// TestSubPathIsWhatItWas swaps a subPath after it was mounted.
func TestSubPathIsWhatItWas(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod(v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}})
	volumes := setup(t, m, pod)
	dir, outside := volumes["e"].HostPath, t.TempDir()
	// A link that stays inside is followed.
	if err := os.MkdirAll(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "inside")); err != nil {
		t.Fatal(err)
	}
	pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "e", MountPath: "/e", SubPath: "inside/made"}}
	bind := func() string {
		t.Helper()
		mounts, err := m.Mounts(pod, &pod.Spec.Containers[0], MountOptions{Volumes: volumes})
		if err != nil {
			t.Fatal(err)
		}
		return mounts[0].HostPath
	}
	path := bind()
	same := func(a, b string) bool {
		x, err := os.Stat(a)
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.Stat(b)
		if err != nil {
			t.Fatal(err)
		}
		return os.SameFile(x, y)
	}
	if !same(path, filepath.Join(dir, "real/made")) {
		t.Error("the subPath isn't what is mounted")
	}
	// The pod swaps it for a link that leads out: the mount stays, and a new
	// one is refused.
	if err := os.Rename(filepath.Join(dir, "real/made"), filepath.Join(dir, "real/moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "real/made")); err != nil {
		t.Fatal(err)
	}
	if !same(path, filepath.Join(dir, "real/moved")) {
		t.Error("the mount followed the swap")
	}
	if _, err := m.Mounts(pod, &pod.Spec.Containers[0], MountOptions{Volumes: volumes}); err == nil {
		t.Error("a link out of the volume was mounted")
	}
	// And for another directory: the next run gets that one.
	if err := os.Remove(filepath.Join(dir, "real/made")); err != nil {
		t.Fatal(err)
	}
	if !same(bind(), filepath.Join(dir, "real/made")) || len(mountsBelow(t, m.Dir)) != 1 {
		t.Errorf("a stale mount was kept: %q", mountsBelow(t, m.Dir))
	}
}

func TestHosts(t *testing.T) {
	m := newManager(t, nil)
	pod := newPod()
	pod.Spec.HostAliases = []v1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b.c"}}}
	write := func(o MountOptions) string {
		t.Helper()
		file, err := m.writeHosts(pod, o)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	want := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n" +
		"10.0.0.1\tweb.sub.ns.svc.local\tweb\nfd00::1\tweb.sub.ns.svc.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb.c\n"
	if got := write(MountOptions{PodIPs: []string{"10.0.0.1", "fd00::1"}, Hostname: "web", Domain: "sub.ns.svc.local"}); got != want {
		t.Errorf("got\n%s", got)
	}
	// Shorter content replaces all of the longer one.
	pod.Spec.HostAliases = nil
	if got := write(MountOptions{PodIPs: []string{"10.0.0.1"}, Hostname: "web"}); !strings.HasSuffix(got, "ip6-allrouters\n10.0.0.1\tweb\n") {
		t.Errorf("got\n%s", got)
	}
	m.HostsFile = filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(m.HostsFile, []byte("127.0.0.1 host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod.Spec.HostNetwork = true
	if got := write(MountOptions{}); got != "# Kubernetes-managed hosts file (host network).\n127.0.0.1 host\n" {
		t.Errorf("got\n%s", got)
	}
}
