package recipe_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/recipe"
)

// Every test here is an attack that worked on some container runtime, or tries
// what would have to work if this one were wrong in the same way. The attacker
// has all of the rootfs, the volumes, and root with all capabilities inside.

// links are the ways a path inside can point at a directory of the host.
func links(host string) map[string]string {
	return map[string]string{
		"absolute":              host,
		"relative":              "../../../../../../../../.." + host,
		"through proc's root":   "/proc/self/root" + host,
		"through proc's cwd":    "/proc/self/cwd/../../../../../.." + host,
		"through a descriptor":  "/proc/self/fd/9" + host,
		"through pause's root":  "/proc/1/root" + host,
		"dots and slashes only": "/..//./../" + host,
	}
}

// TestLinkedMountTargets: CVE-2017-1002101, CVE-2019-19921, CVE-2023-27561,
// CVE-2025-31133. The image has links to the host at every place where the
// runtime mounts something. Where a link may stand, it leads to a place inside;
// where it may not, the container is refused. The host is untouched.
func TestLinkedMountTargets(t *testing.T) {
	p := plainPod(t)
	host, untouched := hostDir(t)
	volume := t.TempDir()
	os.WriteFile(volume+"/v", []byte("volume\n"), 0o644)
	for name, link := range links(host) {
		for _, place := range []string{"data", "data/deep/er", "etc/hosts", "dev/termination-log", "run/x"} {
			t.Run(name+"/"+strings.ReplaceAll(place, "/", "_"), func(t *testing.T) {
				p.t = t
				file := strings.Contains(place, "hosts") || strings.Contains(place, "log")
				root, upper := rootfs(t, func(upper string) {
					first := strings.SplitN(place, "/", 2)[0]
					if file {
						os.MkdirAll(filepath.Join(upper, first), 0o755)
						first = place
						link += "/file"
					}
					if err := os.Symlink(link, filepath.Join(upper, first)); err != nil {
						t.Fatal(err)
					}
				})
				spec := p.spec(root, "cat /"+place+"/v")
				m := recipe.Mount{Source: bind(t, volume), Target: "/" + place}
				if file {
					m = recipe.Mount{Source: bind(t, volume+"/v"), Target: "/" + place, File: true}
					spec.Args[2] = "cat /" + place
				}
				spec.Mounts = []recipe.Mount{m}
				switch c, err := p.launch(spec, containerNamespaces); {
				case err != nil:
					var se *recipe.StepError
					if !errors.As(err, &se) || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ELOOP) {
						t.Errorf("refused, but not for the link: %v%s", err, callOf(err))
					}
				default:
					if got := c.wait(); got.out != "volume\n" {
						t.Errorf("the volume isn't there: %+v", got)
					}
				}
				noCopyOf(t, upper, host)
			})
		}
		untouched()
	}
}

// noCopyOf fails if the mount point was made below the rootfs at the host's path
// with anything in it: mount points are empty.
func noCopyOf(t *testing.T, upper, host string) {
	t.Helper()
	filepath.WalkDir(filepath.Join(upper, host), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, _ := os.ReadFile(path); len(b) > 0 {
				t.Errorf("%s holds %q", path, b)
			}
		}
		return nil
	})
}

// TestLinksThatHold: a link inside the image to a place inside the image is no
// attack, and containers with them run.
func TestLinksThatHold(t *testing.T) {
	p := plainPod(t)
	volume := t.TempDir()
	os.WriteFile(volume+"/v", []byte("volume\n"), 0o644)
	root, _ := rootfs(t, func(upper string) {
		os.MkdirAll(upper+"/real/place", 0o755)
		os.MkdirAll(upper+"/run", 0o755)
		os.Mkdir(upper+"/var", 0o755)
		os.Symlink("../run", upper+"/var/run")
		os.Symlink("/real", upper+"/linked")
		os.Symlink("../../../real/place/f", upper+"/real/file")
		os.WriteFile(upper+"/real/place/f", nil, 0o644)
	})
	spec := p.spec(root, "cat /run/secrets/v /real/place/new/v /real/place/f")
	spec.Mounts = []recipe.Mount{
		{Source: bind(t, volume), Target: "/var/run/secrets"},
		{Source: bind(t, volume), Target: "/linked/place/new"},
		{Source: bind(t, volume+"/v"), Target: "/real/file", File: true},
	}
	p.expect(spec, "volume\nvolume\nvolume\n")
}

// TestLinkedSystemDirectories: /dev, /proc and /sys must be real.
func TestLinkedSystemDirectories(t *testing.T) {
	p := plainPod(t)
	host, untouched := hostDir(t)
	for dir, why := range map[string]string{"dev": "mounting /dev", "proc": "mounting proc", "sys": "mounting /sys"} {
		for name, link := range map[string]string{"host": host, "inside": "/tmp", "itself": dir, "another": "etc"} {
			base := t.TempDir()
			writeImage(t, base)
			os.Remove(base + "/" + dir)
			if err := os.Symlink(link, base+"/"+dir); err != nil {
				t.Fatal(err)
			}
			spec := p.spec(bind(t, base), "echo started")
			spec.MaskedPaths, spec.ReadonlyPaths = nil, nil
			if got := p.refuses(spec); !strings.HasPrefix(got, fmt.Sprintf("%s: /%s of the image must be a directory, and no link: ", why, dir)) {
				t.Errorf("/%s to %s: %s", dir, name, got)
			}
		}
	}
	untouched()
}

// TestSurprisesAtFileTargets: a FIFO would block who opens it, a device would
// do whatever opening it does. Neither is opened.
func TestSurprisesAtFileTargets(t *testing.T) {
	p := plainPod(t)
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "terminal": unix.S_IFCHR} {
		root, _ := rootfs(t, func(upper string) {
			os.Mkdir(upper+"/etc", 0o755)
			if err := unix.Mknod(upper+"/etc/hosts", mode|0o666, int(unix.Mkdev(5, 0))); err != nil {
				t.Fatal(err)
			}
		})
		hosts := filepath.Join(t.TempDir(), "hosts")
		os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644)
		spec := p.spec(root, "cat /etc/hosts")
		spec.Mounts = []recipe.Mount{{Source: bind(t, hosts), Target: "/etc/hosts", File: true}}
		p.expect(spec, "127.0.0.1 localhost\n")
		_ = name
	}
}

// TestMagicLinks: a volume that is a procfs of the host has links that lead
// out of any root.
func TestMagicLinks(t *testing.T) {
	p := plainPod(t)
	host, untouched := hostDir(t)
	for _, link := range []string{
		fmt.Sprintf("/hostproc/%d/root%s", os.Getpid(), host), "/hostproc/self/root" + host,
		"/hostproc/1/cwd", "/hostproc/thread-self/root" + host,
	} {
		for _, what := range []string{"mount", "cwd"} {
			root, _ := rootfs(t, func(upper string) { os.Symlink(link, upper+"/data") })
			spec := p.spec(root, "pwd; ls -la .")
			spec.Mounts = []recipe.Mount{{Source: bind(t, "/proc"), Target: "/hostproc"}}
			if what == "mount" {
				spec.Mounts = append(spec.Mounts, recipe.Mount{Source: bind(t, t.TempDir()), Target: "/data/x"})
			} else {
				spec.Cwd = "/data"
			}
			if got := p.refuses(spec); !strings.HasSuffix(got, "too many levels of symbolic links") && !strings.HasSuffix(got, "permission denied") {
				t.Errorf("%s by %s: %s", what, link, got)
			}
		}
	}
	untouched()
}

// TestMaskedPathTricks: CVE-2025-31133, CVE-2025-52881, CVE-2019-19921. The
// image, or a volume, tries to keep a mask away from what it should mask.
func TestMaskedPathTricks(t *testing.T) {
	p := plainPod(t)
	secret := func(upper string) {
		os.MkdirAll(upper+"/real", 0o755)
		os.WriteFile(upper+"/real/secret", []byte("secret\n"), 0o644)
		os.Symlink("/real/secret", upper+"/secret")
		os.Symlink("/proc/interrupts", upper+"/interrupts")
		os.Symlink("/real/../real", upper+"/dir")
	}
	// A link inside is followed: what it leads to is masked.
	root, _ := rootfs(t, secret)
	spec := p.spec(root, "cat /secret /real/secret /proc/interrupts; ls /dir")
	spec.MaskedPaths = append([]string{"/secret"}, maskedPaths...)
	p.expect(spec, "secret\n")
	root, _ = rootfs(t, secret)
	spec = p.spec(root, "ls /real /dir")
	spec.MaskedPaths = []string{"/dir"}
	p.expect(spec, "/dir:\n\n/real:\n")
	// One that leads into another file system is refused, not ignored.
	root, _ = rootfs(t, secret)
	spec = p.spec(root, "")
	spec.MaskedPaths = []string{"/interrupts"}
	if got := p.refuses(spec); got != "masking /interrupts: invalid cross-device link" {
		t.Error(got)
	}
	// A volume led into /proc or /sys by a link doesn't hide what is to be
	// masked or made read-only there.
	volume := t.TempDir()
	for _, link := range []string{"/proc", "/sys/firmware"} {
		root, _ := rootfs(t, func(upper string) { os.Symlink(link, upper+"/data") })
		spec := p.spec(root, "")
		spec.Mounts = []recipe.Mount{{Source: bind(t, volume), Target: "/data"}}
		if got := p.refuses(spec); !strings.HasSuffix(got, "invalid cross-device link") {
			t.Errorf("volume at %s: %s", link, got)
		}
	}
	root, _ = rootfs(t, func(upper string) { os.Symlink("/sys", upper+"/data") })
	spec = p.spec(root, "ls /sys")
	spec.Mounts = []recipe.Mount{{Source: bind(t, volume), Target: "/data"}}
	p.expect(spec, "")
	root, _ = rootfs(t, func(upper string) {
		os.MkdirAll(upper+"/proc/sys", 0o755)
		os.Symlink("/proc/sys", upper+"/data")
	})
	spec = p.spec(root, "ls /proc/sys; echo x 2>/dev/null >/proc/sys/kernel/domainname || echo fixed")
	spec.Mounts = []recipe.Mount{{Source: bind(t, volume), Target: "/data"}}
	p.expect(spec, "abi\ndebug\ndev\nfs\nkernel\nnet\nuser\nvm\nfixed\n")
	// The image's /dev/null isn't what masks.
	root, _ = rootfs(t, func(upper string) {
		os.Mkdir(upper+"/dev", 0o755)
		os.Symlink("/proc/sysrq-trigger", upper+"/dev/null")
		os.Symlink("/etc/passwd", upper+"/null")
		os.MkdirAll(upper+"/dirmask/x", 0o755)
	})
	spec = p.spec(root, "cat /proc/interrupts; ls /proc/acpi; stat -c %t:%T /proc/interrupts /dev/null")
	p.expect(spec, "1:3\n1:3\n")
}

// TestMasksAreNotShared: what a container does to its masks, the next of the
// pod doesn't see.
func TestMasksAreNotShared(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	p.run(p.spec(root, `for f in /proc/interrupts /proc/acpi; do
		chmod 000 $f; chown 33 $f; mount -o remount,bind,rw $f; chmod 000 $f; touch $f/left; umount $f; done`))
	root, _ = rootfs(t, nil)
	p.expect(p.spec(root, "stat -c '%a %u' /proc/interrupts /proc/acpi; ls /proc/acpi; cat /proc/interrupts"), "666 0\n755 0\n")
}
