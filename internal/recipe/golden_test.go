package recipe

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/test/golden"
)

// null stands for any descriptor: compositions never look at them.
func null(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func ptr[T any](v T) *T { return &v }

const (
	defaultCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_KILL | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_NET_BIND_SERVICE
	defaultPath = "PATH=/usr/local/bin:/usr/bin:/bin"
)

// allow is the shortest seccomp program: everything is allowed.
var allow = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000}}

func process(t testing.TB) Process {
	f := null(t)
	return Process{
		Args: []string{"sh", "-c", "echo \"hello\"\nexit 3"}, Env: []string{defaultPath, "TOKEN=secret"}, Cwd: "/srv/app",
		UID: 1000, GID: 1000, Groups: []uint32{1000, 2000},
		Bounding: defaultCaps, Effective: 0, Permitted: 0,
		NoNewPrivs: true, Seccomp: allow, OOMScoreAdj: ptr(1000),
		Stdout: f, Stderr: f,
	}
}

// goldens are one recipe each for the shapes the runtime makes.
func goldens(t *testing.T) map[string]func() (*Recipe, error) {
	f := null(t)
	base := ContainerSpec{
		Process: process(t), Rootfs: f, Dev: f, Devpts: f, Shm: true, Mqueue: true, PrivateProc: true, Sysfs: "ro",
		Cgroupfs:      []Mount{{Source: f, Target: "/sys/fs/cgroup"}},
		MaskedPaths:   []string{"/proc/kcore", "/sys/firmware"},
		ReadonlyPaths: []string{"/proc/sys", "/proc/irq"},
		Mounts: []Mount{
			{Source: f, Target: "/data", Why: "mounting volume cache at /data"},
			{Source: f, Target: "/etc/hosts", File: true},
		},
	}
	return map[string]func() (*Recipe, error){
		"container": func() (*Recipe, error) { return Container(base) },
		"container-userns-root": func() (*Recipe, error) {
			s := base
			s.UserNS, s.CgroupNS, s.ReadonlyRootfs = true, true, true
			s.Volumes = []string{"/var/lib/db", "/proc", "/data"}
			s.UID, s.GID, s.Groups, s.Cwd = 0, 0, nil, ""
			s.Effective, s.Permitted = defaultCaps, defaultCaps
			s.NoNewPrivs = false
			s.CgroupProcs = []*os.File{f}
			return Container(s)
		},
		"container-tty-labels": func() (*Recipe, error) {
			s := base
			s.Stdin, s.Terminal = f, true
			s.Args = []string{"/bin/login"}
			s.NoNewPrivs = false
			s.Effective, s.Permitted, s.Inheritable, s.Ambient = 1<<unix.CAP_KILL, 1<<unix.CAP_KILL, 1<<unix.CAP_KILL, 1<<unix.CAP_KILL
			s.AppArmor, s.SELinuxLabel = "unipod-default", "system_u:system_r:container_t:s0:c1,c2"
			s.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
			s.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 1024, math.MaxUint64}}
			s.Umask = ptr(uint32(0o77))
			s.Mounts = []Mount{{Source: f, Target: "/dev/shm"}, {Source: f, Target: "/proc/cpuinfo", File: true}}
			return Container(s)
		},
		"exec": func() (*Recipe, error) {
			s := ExecSpec{Process: process(t), PIDFD: f, Namespaces: unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP}
			s.SELinuxLabel = "system_u:system_r:container_t:s0:c1,c2"
			return Exec(s)
		},
		"sandbox": func() (*Recipe, error) {
			return Sandbox(SandboxSpec{
				Hostname: "web-0", ShmSize: 64 << 20, OOMScoreAdj: ptr(-998), CgroupProcs: []*os.File{f},
				Sysctls: map[string]string{"net.ipv4.conf.eth0/1.forwarding": "1", "kernel/shm_rmid_forced": "1"},
			})
		},
		"sandbox-userns": func() (*Recipe, error) {
			return Sandbox(SandboxSpec{Hostname: "web-0", ShmSize: 64 << 20, UserNS: true})
		},
		"sandbox-host": func() (*Recipe, error) { return Sandbox(SandboxSpec{HostIPCShm: true}) },
	}
}

// TestGolden compares the printed recipes with the transcripts in testdata.
func TestGolden(t *testing.T) {
	for name, build := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			r, err := build()
			if err != nil {
				t.Fatal(err)
			}
			got := r.String()
			golden.Check(t, filepath.Join("testdata", name+".txt"), got)
			if strings.Contains(got, "secret") {
				t.Error("the printed recipe holds the value of an environment variable")
			}
			again, err := build()
			if err != nil || !bytes.Equal(r.Encode(), again.Encode()) {
				t.Errorf("built twice, the recipe differs (%v)", err)
			}
		})
	}
}

// BenchmarkBuild measures what every container start pays here; the goal of a
// whole pod start is 10 ms.
func BenchmarkBuild(b *testing.B) {
	f := null(b)
	spec := ContainerSpec{
		Process: process(b), Rootfs: f, Dev: f, Devpts: f, Shm: true, Mqueue: true, PrivateProc: true, Sysfs: "ro",
		MaskedPaths: []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys", "/proc/irq", "/proc/bus"},
	}
	for i := range 8 {
		spec.Mounts = append(spec.Mounts, Mount{Source: f, Target: "/var/lib/volumes/" + string(rune('a'+i))})
	}
	for name, do := range map[string]func(r *Recipe){
		"encode": func(r *Recipe) { r.Encode() },
		"print":  func(r *Recipe) { _ = r.String() },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := Container(spec)
				if err != nil {
					b.Fatal(err)
				}
				do(r)
			}
		})
	}
}
