package recipe_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"unipod.dev/unipod/internal/recipe"
)

func TestReadonlyRootfs(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "touch /x 2>/dev/null || echo read-only; touch /new/place/x && ls /new/place; cat /new/file; pwd")
	volume, file := t.TempDir(), filepath.Join(t.TempDir(), "f")
	os.WriteFile(file, []byte("content\n"), 0o644)
	spec.ReadonlyRootfs, spec.Cwd = true, "/made/cwd"
	spec.Mounts = []recipe.Mount{
		{Source: bind(t, volume), Target: "/new/place"},
		{Source: bind(t, file), Target: "/new/file", File: true},
	}
	p.expect(spec, "read-only\nx\ncontent\n/made/cwd\n")
}

// TestImageVolumes: they stay writable, hide no mount and lead nowhere.
func TestImageVolumes(t *testing.T) {
	p := plainPod(t)
	root, upper := rootfs(t, func(upper string) {
		os.MkdirAll(upper+"/data/sub", 0o755)
		os.WriteFile(upper+"/data/of-image", nil, 0o644)
	})
	volume := t.TempDir()
	os.WriteFile(volume+"/v", nil, 0o644)
	spec := p.spec(root, `ls /data /data/sub /taken; touch /data/x /new/y /taken/z && touch /x 2>/dev/null || echo read-only
		grep -c . /proc/self/cgroup >/dev/null && ls /dev/null /sys/kernel >/dev/null`)
	spec.ReadonlyRootfs = true
	spec.Volumes = []string{"/data", "/data/inside", "/new", "/taken", "/proc", "/dev/shm", "/sys/fs/cgroup"}
	spec.Mounts = []recipe.Mount{{Source: bind(t, volume), Target: "/data/sub"}, {Source: bind(t, volume), Target: "/taken"}}
	p.expect(spec, "/data:\nof-image\nsub\n\n/data/sub:\nv\n\n/taken:\nv\nread-only\n")
	for _, f := range []string{upper + "/data/x", upper + "/new/y", volume + "/z"} {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
	// One that a link makes the image's /proc keeps the container from starting.
	root, _ = rootfs(t, func(upper string) { os.Symlink("/proc", upper+"/link") })
	spec = p.spec(root, "")
	spec.ReadonlyRootfs, spec.Volumes = true, []string{"/link"}
	if got, want := p.refuses(spec), "mounting proc: something is mounted at /proc: invalid cross-device link"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestEmptyImage: an image may be one file.
func TestEmptyImage(t *testing.T) {
	p := plainPod(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/sh", must(os.ReadFile("/bin/busybox")), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := p.spec(bind(t, dir), "cd /; echo *; cd -")
	spec.Args[0] = "/sh"
	spec.Cwd, spec.ReadonlyRootfs = "/var/lib/app", true
	p.expect(spec, "dev proc sh sys var\n/var/lib/app\n")
}

func TestMountsInOrder(t *testing.T) {
	p := plainPod(t)
	outer, inner := t.TempDir(), t.TempDir()
	os.WriteFile(inner+"/in", nil, 0o644)
	root, upper := rootfs(t, func(upper string) { os.Symlink("../var/run", upper+"/run") })
	spec := p.spec(root, "ls /data/sub/deep /run/secrets")
	spec.Mounts = []recipe.Mount{
		{Source: bind(t, outer), Target: "/data"},
		{Source: bind(t, inner), Target: "/data/sub/deep"},
		{Source: bind(t, outer), Target: "/var/run"},
		{Source: bind(t, inner), Target: "/run/secrets"},
	}
	p.expect(spec, "/data/sub/deep:\nin\n\n/run/secrets:\nin\n")
	for _, made := range []string{outer + "/sub/deep", outer + "/secrets", upper + "/data"} {
		if i, err := os.Stat(made); err != nil || i.Mode() != os.ModeDir|0o755 {
			t.Errorf("mount point %s: %v, %v", made, i, err)
		}
	}
	// A directory doesn't fit on a file, nor a file on a directory.
	for _, m := range []recipe.Mount{
		{Source: bind(t, outer), Target: "/etc/passwd", Why: "mounting volume v at /etc/passwd"},
		{Source: bind(t, "/etc/hostname"), Target: "/etc", File: true, Why: "mounting volume v at /etc"},
	} {
		root, _ := rootfs(t, nil)
		spec := p.spec(root, "")
		spec.Mounts = []recipe.Mount{m}
		if got := p.refuses(spec); !strings.HasPrefix(got, m.Why+": not a directory") {
			t.Errorf("%s: %s", m.Target, got)
		}
	}
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, func(upper string) {
		os.MkdirAll(upper+"/opt/secret/deep", 0o755)
		os.WriteFile(upper+"/opt/key", []byte("secret"), 0o600)
		os.MkdirAll(upper+"/opt/fixed", 0o755)
	})
	spec := p.spec(root, `
		cat /proc/interrupts /proc/keys /proc/timer_list /opt/key; ls /proc/acpi /sys/firmware /opt/secret
		for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /opt/fixed/x /opt/secret/x /proc/acpi/x; do
			echo x 2>/dev/null >$f && echo "$f was written"
		done
		chmod 777 /proc/interrupts /opt/key 2>/dev/null && echo "a mask was changed"
		mount -o remount,rw /proc/sys 2>/dev/null
		touch /opt/free`)
	spec.MaskedPaths = append([]string{"/opt/secret", "/opt/key", "/opt/missing/x", "/proc/version/x"}, maskedPaths...)
	spec.ReadonlyPaths = append([]string{"/opt/fixed", "/proc/sys/kernel", "/opt/secret", "/opt/none"}, readonlyPaths...)
	p.expect(spec, "/opt/secret:\n\n/proc/acpi:\n\n/sys/firmware:\n")
}
