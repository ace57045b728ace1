package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/security"
	"unipod.dev/unipod/internal/security/apparmor"
)

type (
	containerMod = func(*runtimeapi.ContainerConfig)
	podMod       = func(*runtimeapi.PodSandboxConfig)
)

// secured changes a container's security context.
func secured(f func(*runtimeapi.LinuxContainerSecurityContext)) containerMod {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
}

// check runs cmd in a container of its own and compares what it printed, its
// white space folded.
func (p *pod) check(t *testing.T, cmd, want string, mod ...containerMod) {
	t.Helper()
	w := p.w.t
	p.w.t = t
	defer func() { p.w.t = w }()
	out, _ := p.run(cmd, mod...)
	if got := strings.Join(strings.Fields(out), " "); got != want {
		t.Errorf("%s\n got %q\nwant %q", cmd, got, want)
	}
}

func masking(sc *runtimeapi.LinuxContainerSecurityContext) {
	sc.MaskedPaths, sc.ReadonlyPaths = security.MaskedPaths(), security.ReadonlyPaths()
}

// What is masked is empty to read and closed to write, what is read-only is
// refused; critest's own case can't tell on images whose shell has a built-in
// ls. Every path that this kernel has is looked at.
func TestMaskedPaths(t *testing.T) {
	w := newWorld(t)
	p := w.pod("masked", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	files, dirs := 0, 0
	var look strings.Builder
	for _, path := range security.MaskedPaths() {
		fi, err := os.Stat(path)
		if err != nil {
			continue // not on this machine
		}
		if fi.IsDir() {
			dirs++
			look.WriteString("ls -A " + path + " | wc -l; touch " + path + "/x 2>&1 | grep -c 'Read-only'; ")
		} else {
			files++
			look.WriteString("head -c 64 " + path + " | wc -c; ls -l " + path + " | grep -c '1, *3'; ")
		}
	}
	if files < 3 || dirs < 1 {
		t.Fatalf("this kernel has %d of the masked files and %d of the directories", files, dirs)
	}
	p.check(t, look.String(), strings.TrimSpace(strings.Repeat("0 1 ", files+dirs)), secured(masking))

	// Unmasked (procMount: Unmasked sends no paths) and privileged containers
	// see the real thing.
	for name, mod := range map[string]containerMod{
		"unmasked": func(*runtimeapi.ContainerConfig) {},
		"privileged": secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			masking(sc)
			sc.Privileged = true
		}),
	} {
		t.Run(name, func(t *testing.T) {
			p.check(t, "head -c 10 /proc/interrupts | wc -c", "10", mod)
		})
	}
	t.Run("a path of the image", func(t *testing.T) {
		p.check(t, "wc -c </etc/passwd; ls -A /home | wc -l; mkdir /home/x 2>/dev/null; echo $?; echo x 2>/dev/null >>/etc/group; echo $?; ls /nowhere 2>/dev/null; echo $?", "0 0 1 1 1",
			secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
				sc.MaskedPaths, sc.ReadonlyPaths = []string{"/etc/passwd", "/home", "/nowhere"}, []string{"/etc/group", "/nowhere"}
			}))
	})
}

func TestReadonlyPaths(t *testing.T) {
	w := newWorld(t)
	p := w.pod("ro", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	try := "for f in /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; do v=$(cat $f); (echo $v >$f) 2>&1 | grep -c 'Read-only'; done; mount | grep -cE ' /proc/(fs|irq|sys) .*[(]ro,'"
	p.check(t, try, "1 1 3", secured(masking))
	p.check(t, "v=$(cat /proc/sys/net/ipv4/ip_forward); echo $v >/proc/sys/net/ipv4/ip_forward; echo $?; touch /sys/x 2>&1 | grep -c Read-only", "0 0",
		secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { masking(sc); sc.Privileged = true }))
	p.check(t, "mkdir /sys/kernel/x 2>&1 | grep -c Read-only", "1")
}

const capsOf = "grep -E 'Cap(Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2"

func TestCapabilities(t *testing.T) {
	w := newWorld(t)
	p := w.pod("caps", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	set := func(c *runtimeapi.Capability, more ...func(*runtimeapi.LinuxContainerSecurityContext)) containerMod {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Capabilities = c
			for _, m := range more {
				m(sc)
			}
		})
	}
	user := func(sc *runtimeapi.LinuxContainerSecurityContext) {
		sc.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}
	const (
		none  = "0000000000000000"
		deflt = "00000000a80425fb" // docker's and containerd's fourteen
		admin = "00000000a80435fb" // with NET_ADMIN (12)
		raw   = "00000000a80405fb" // without NET_RAW (13)
		bind  = "0000000000000400" // NET_BIND_SERVICE alone
	)
	four := func(s ...string) string { return strings.Join(s, " ") }
	p.check(t, capsOf, four(deflt, deflt, deflt, none))
	p.check(t, capsOf, four(admin, admin, admin, none), set(&runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}))
	p.check(t, capsOf, four(raw, raw, raw, none), set(&runtimeapi.Capability{DropCapabilities: []string{"NET_RAW"}}))
	p.check(t, capsOf, four(none, none, none, none), set(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}}))
	p.check(t, capsOf, four(bind, bind, bind, none), set(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}))
	p.check(t, capsOf, four(none, none, deflt, none), set(nil, user))
	p.check(t, capsOf, four(bind, bind, deflt, bind), set(&runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}, user))
	p.check(t, "ip link set lo mtu 1400 2>/dev/null; echo $?", "2")
	p.check(t, "ip link set lo mtu 1400; echo $?", "0", set(&runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}))

	// What a process of exec has is what the first one has.
	id := p.start("drop", []string{"sleep", "1000"}, set(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}}))
	if out, _ := w.exec(id, "sh", "-c", capsOf); strings.Contains(out, "1") || strings.Contains(out, "f") {
		t.Errorf("exec holds capabilities: %q", out)
	}
	// A name that is none is an error that says so.
	id, err := p.create("bad", nil, set(&runtimeapi.Capability{AddCapabilities: []string{"FLY"}}))
	if err == nil {
		_, err = w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err == nil || !strings.Contains(err.Error(), "FLY") {
		t.Errorf("an unknown capability: %v", err)
	}
}

func TestNoNewPrivs(t *testing.T) {
	w := newWorld(t)
	p := w.pod("nnp")
	const look = "grep NoNewPrivs /proc/self/status | cut -f2"
	p.check(t, look, "0")
	on := secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.NoNewPrivs = true })
	p.check(t, look, "1", on)
	id := p.start("x", []string{"sleep", "1000"}, on)
	if out, _ := w.exec(id, "sh", "-c", look); out != "1\n" {
		t.Errorf("exec: %q", out)
	}
}

func TestSeccomp(t *testing.T) {
	w := newWorld(t)
	p := w.pod("seccomp", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) containerMod {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		})
	}
	const look = "grep Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null && echo unshared; mkdir /tmp/d 2>/dev/null && echo made"
	file := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],
		"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p.check(t, look, "0 unshared made", profile(runtimeapi.SecurityProfile_Unconfined, ""))
	p.check(t, look, "2 made", profile(runtimeapi.SecurityProfile_RuntimeDefault, ""))
	p.check(t, look, "2 unshared", profile(runtimeapi.SecurityProfile_Localhost, "localhost/"+file))
	p.check(t, look, "0 unshared made", profile(runtimeapi.SecurityProfile_RuntimeDefault, ""),
		secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Privileged = true }))

	id := p.start("x", []string{"sleep", "1000"}, profile(runtimeapi.SecurityProfile_RuntimeDefault, ""))
	if out, _ := w.exec(id, "sh", "-c", "grep Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null || echo refused"); out != "2\nrefused\n" {
		t.Errorf("exec: %q", out)
	}
	// By a string, as older clients say it.
	old := func(path string) containerMod {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			//lint:ignore SA1019 it is what is tried
			sc.SeccompProfilePath = path
		})
	}
	p.check(t, look, "2 made", old("runtime/default"))
	p.check(t, look, "2 unshared", old("localhost/"+file))
	p.check(t, look, "0 unshared made", old("unconfined"))
	p.check(t, look, "0 unshared made", old("runtime/default"), profile(runtimeapi.SecurityProfile_Unconfined, ""))
	p.refused(t, "none of runtime/default", old("strict"))

	// Its creation fails, not its start.
	_, err := p.create("missing", nil, profile(runtimeapi.SecurityProfile_Localhost, file+".none"))
	if err == nil || !strings.Contains(err.Error(), "profile.json.none") {
		t.Errorf("a profile that isn't there: %v", err)
	}
}

// What there is of AppArmor on a machine without it: a profile that is named
// must not be forgotten, by whichever field.
func TestAppArmorProfiles(t *testing.T) {
	if apparmor.Enabled() {
		t.Skip("critest's cases try them where AppArmor is; see test/vm/apparmor.sh")
	}
	w := newWorld(t)
	p := w.pod("apparmor")
	profile := func(now *runtimeapi.SecurityProfile, old string) containerMod {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			//lint:ignore SA1019 it is what is tried
			sc.Apparmor, sc.ApparmorProfile = now, old
		})
	}
	local := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "localhost/mine"}
	for _, refused := range []containerMod{profile(local, ""), profile(nil, "localhost/mine"), profile(local, "unconfined"), profile(nil, "mine")} {
		if id, err := p.create("refused", nil, refused); err == nil || !strings.Contains(err.Error(), "AppArmor") {
			t.Errorf("%s was made: %v", id, err)
		}
	}
	for _, name := range []string{"", "runtime/default", "unconfined"} {
		p.check(t, "echo up", "up", profile(nil, name))
	}
}

func TestReadonlyRootfs(t *testing.T) {
	w := newWorld(t)
	p := w.pod("ro")
	dir := t.TempDir()
	p.check(t, "for d in / /etc /tmp /bin; do touch $d/x 2>/dev/null; echo $?; done; touch /dev/shm/x /vol/x; echo $?; echo y 2>/dev/null >>/etc/hosts; echo $?", "1 1 1 1 0 1",
		func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.ReadonlyRootfs = true
			c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/vol"}}
		})
	if _, err := os.Stat(dir + "/x"); err != nil {
		t.Errorf("what was written to the volume: %v", err)
	}
}

func TestUsers(t *testing.T) {
	w := newWorld(t)
	p := w.pod("users")
	num := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	const who = "id -u; id -g; id -G; echo $HOME"
	for _, tc := range []struct {
		name, want string
		set        func(*sc)
	}{
		{"image's", "0 0 0 /root", func(*sc) {}},
		{"number in passwd", "1000 1000 1000 2000 /home", func(s *sc) { s.RunAsUser = num(1000) }},
		{"number not in passwd", "4242 0 0 /", func(s *sc) { s.RunAsUser = num(4242) }},
		{"name", "1000 1000 1000 2000 /home", func(s *sc) { s.RunAsUsername = "web" }},
		{"group", "1000 77 77 2000 /home", func(s *sc) { s.RunAsUser, s.RunAsGroup = num(1000), num(77) }},
		{"supplemental", "1000 1000 1000 555 2000 /home", func(s *sc) { s.RunAsUser, s.SupplementalGroups = num(1000), []int64{555} }},
		{"strict", "1000 1000 1000 555 /home", func(s *sc) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = num(1000), []int64{555}, runtimeapi.SupplementalGroupsPolicy_Strict
		}},
	} {
		t.Run(tc.name, func(t *testing.T) { p.check(t, who, tc.want, secured(tc.set)) })
	}
	id := p.start("status", []string{"sleep", "1000"}, secured(func(s *sc) {
		s.RunAsUser, s.SupplementalGroups = num(1000), []int64{555}
	}))
	u := w.status(id).User.Linux
	if u.Uid != 1000 || u.Gid != 1000 || len(u.SupplementalGroups) != 3 {
		t.Errorf("status: %v", u)
	}
	for name, set := range map[string]func(*sc){
		"nobody-here":   func(s *sc) { s.RunAsUsername = "nobody-here" },
		"run_as_group":  func(s *sc) { s.RunAsGroup = num(5) },
		"supplemental ": func(s *sc) { s.SupplementalGroups = []int64{-1} },
	} {
		if _, err := p.create("refused", nil, secured(set)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSysctls(t *testing.T) {
	w := newWorld(t)
	set := func(k, v string, more ...podMod) podMod {
		return func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{k: v}
			for _, m := range more {
				m(c)
			}
		}
	}
	p := w.pod("ok", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "42", "kernel.shm_rmid_forced": "1", "net/ipv4/ping_group_range": "0 7"}
	})
	p.check(t, "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced net/ipv4/ping_group_range", "42 1 0 7")
	host := func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}
	for name, mod := range map[string]podMod{
		"kernel.panic":                 set("kernel.panic", "1"),
		"vm.overcommit_memory":         set("vm.overcommit_memory", "1"),
		"kernel.hostname":              set("kernel.hostname", "x"),
		"net.ipv4.ip_local_port_range": set("net.ipv4.ip_local_port_range", "1 2", host),
		"net.ipv4.no_such":             set("net.ipv4.no_such", "1"),
		"net.ipv4.ip_forward":          set("net.ipv4.ip_forward", "much"),
		"../../etc":                    set("net.../../etc", "1"),
	} {
		c := podConfig(w, "bad", mod)
		_, err := w.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: c})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("sysctl %s: %v", name, err)
		}
	}
	if n := len(w.allSandboxes()); n != 1 {
		t.Errorf("%d sandboxes, those refused among them", n)
	}
}

func TestDevices(t *testing.T) {
	w := newWorld(t)
	p := w.pod("dev", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	device := func(host, at, perm string) containerMod {
		return func(c *runtimeapi.ContainerConfig) {
			c.Devices = append(c.Devices, &runtimeapi.Device{HostPath: host, ContainerPath: at, Permissions: perm})
		}
	}
	p.check(t, "ls /dev | sort; head -c 3 /dev/zero | od -An -tx1; echo x 2>/dev/null >/dev/full || echo full", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 00 00 00 full")
	p.check(t, "ls -l /dev/mine | tr -s ' ' | cut -d' ' -f1,5,6; head -c 2 /dev/mine | wc -c; head -c 2 /elsewhere | wc -c", "crw-rw-rw- 1, 5 2 2",
		device("/dev/zero", "/dev/mine", "rwm"), device("/dev/zero", "/elsewhere", "rw"))
	// A node made by hand of a device that isn't the container's stays shut.
	p.check(t, "mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg 2>&1 | grep -c 'not permitted'", "1")
	p.check(t, "test -c /dev/kmsg && echo all", "all", secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Privileged = true }))
	id, err := p.create("bad", nil, device("/dev/no-such", "/dev/x", "rw"))
	if err == nil {
		_, err = w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err == nil || !strings.Contains(err.Error(), "/dev/no-such") {
		t.Errorf("a device that isn't there: %v", err)
	}
}

// A pod's own limits are applied where nobody else sets them; below a parent
// of a kubelet's they are that kubelet's.
func TestPodLimits(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, parent, want string
	}{
		{"ours", "", "67108864"},
		{"kubelets", "/unipod-test-kubepods-" + filepath.Base(filepath.Dir(w.cfg.Root)), "unlimited"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := w.pod(tc.name, func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.CgroupParent = tc.parent
				c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
			})
			s, err := w.sandbox(p.id)
			if err != nil {
				t.Fatal(err)
			}
			st, err := s.group.Stats()
			if err != nil {
				t.Fatal(err)
			}
			got := "unlimited"
			if st.Memory.Limit != 0 {
				got = strconv.FormatUint(st.Memory.Limit, 10)
			}
			if got != tc.want {
				t.Errorf("memory limit %s, want %s", got, tc.want)
			}
			w.clear()
			for _, dir := range s.group.Paths() {
				t.Errorf("left: %s", dir)
			}
			if tc.parent != "" {
				for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
					os.Remove(root + tc.parent)
				}
				dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + tc.parent)
				for _, d := range dirs {
					os.Remove(d)
				}
			}
		})
	}
}
