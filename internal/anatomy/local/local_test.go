package local

import (
	"os"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParseMountinfo(t *testing.T) {
	table := parseMountinfo([]byte(`28 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 28 0:25 /a\040b /mnt/c\134d ro,nosuid - tmpfs tmp\011fs rw,size=4k
broken line
31 28 0:26 / /x rw - cgroup
`))
	want := []mountLine{
		{"/", "/", "rw,relatime", "ext4", "/dev/vda", "rw"},
		{"/a b", `/mnt/c\d`, "ro,nosuid", "tmpfs", "tmp\tfs", "rw,size=4k"},
	}
	if !slices.Equal(table, want) {
		t.Errorf("got %q", table)
	}
}

func TestOrigins(t *testing.T) {
	config := &runtimeapi.ContainerConfig{
		Mounts: []*runtimeapi.Mount{
			{ContainerPath: "/www/", HostPath: "/r/pods/u/volumes/kubernetes.io~empty-dir/www"},
			{ContainerPath: "/host", HostPath: "/srv"},
			{ContainerPath: "/part", HostPath: "/r/pods/u/volume-subpaths/data/c/0"},
			{ContainerPath: "/etc/hosts", HostPath: "/r/pods/u/etc-hosts"},
			{ContainerPath: "/proc/acpi", HostPath: "/srv/acpi"},
			{ContainerPath: "/img", Image: &runtimeapi.ImageSpec{Image: "models:1"}},
		},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			MaskedPaths: []string{"/proc/kcore", "/proc/acpi"}, ReadonlyPaths: []string{"/proc/sys"},
		}},
	}
	var table []mountLine
	for _, target := range []string{"/", "/proc", "/www", "/host", "/part", "/etc/hosts", "/etc/resolv.conf", "/img", "/proc/kcore", "/proc/acpi", "/proc/sys", "/dev/shm", "/dev/pts", "/odd"} {
		table = append(table, mountLine{root: "/", target: target, options: "ro,nosuid", fstype: "x", source: "src"})
	}
	all, masked, readonly := mounts(table, config, "web:1")
	want := map[string]string{
		"/": "image web:1, with a writable layer of its own", "/proc": "of the container's PID namespace",
		"/www": "emptyDir www", "/host": "hostPath", "/part": "part of volume data", "/etc/hosts": "the pod's hosts file",
		"/etc/resolv.conf": "the pod's resolver configuration", "/img": "image models:1",
		"/proc/acpi": "hostPath", // the manifest's own mount, masked or not
		"/dev/shm":   "the pod's", "/dev/pts": "the container's own", "/odd": "mounted inside, of src",
	}
	for _, m := range all {
		if m.Origin != want[m.Target] || !m.ReadOnly {
			t.Errorf("%s: %q, want %q", m.Target, m.Origin, want[m.Target])
		}
		delete(want, m.Target)
	}
	if len(want) > 0 || !slices.Equal(masked, []string{"/proc/kcore"}) || !slices.Equal(readonly, []string{"/proc/sys"}) {
		t.Errorf("missing %q, masked %q, read-only %q", want, masked, readonly)
	}
}

func TestThisProcess(t *testing.T) {
	p, err := openProc(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	host, err := p.namespaces()
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.describe(nil, host)
	if err != nil {
		t.Fatal(err)
	}
	if d.PID != os.Getpid() || d.UID != uint32(os.Geteuid()) || d.Memory == 0 || len(d.Command) == 0 || len(d.Namespaces) < 6 {
		t.Errorf("%+v", d)
	}
	for _, ns := range d.Namespaces {
		if ns.Shared != "host" || ns.Inode == 0 {
			t.Errorf("%+v", ns)
		}
	}
	if p.in("/no/such/group") || p.in("") {
		t.Error("a process in a group that doesn't exist")
	}
}

func TestParseStatus(t *testing.T) {
	uid, inside := parseStatus([]byte("Name:\tsh\nUid:\t1000\t1001\t1001\t1001\nNSpid:\t4720\t7\t1\n"))
	if uid != 1001 || !slices.Equal(inside, []int{7, 1}) {
		t.Errorf("%d %v", uid, inside)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte(`30 28 0:25 /a\040b /mnt/c\134d ro,nosuid - tmpfs tmp\011fs rw,size=4k`))
	f.Fuzz(func(t *testing.T, b []byte) {
		mounts(parseMountinfo(b), nil, "i")
	})
}
