package recipe_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/recipe"
)

func TestUserNamespace(t *testing.T) {
	p := newPod(t, recipe.SandboxSpec{Hostname: "pod", ShmSize: 1 << 20, UserNS: true,
		Sysctls: map[string]string{"net.ipv4.ping_group_range": "0 0"}}, podNamespaces)
	spec := p.spec(mappedRootfs(t), `id -u; awk '{ print $1, $2, $3 }' /proc/self/uid_map; stat -c %u /bin/sh; touch /x && stat -c %u /x
		hostname; cat /proc/interrupts; echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward || echo fixed
		cat /proc/sys/net/ipv4/ping_group_range | tr '\t' ' '; echo x >/dev/shm/x; ls /dev/mqueue; cat /sys/class/net/lo/mtu
		touch /ready; exec sleep 100`)
	spec.UserNS, spec.Devpts = true, nil
	caps := spec.Bounding
	spec.Permitted, spec.Effective = caps, caps
	c, err := p.launch(spec, containerNamespaces)
	if err != nil {
		t.Fatalf("%v%s", err, callOf(err))
	}
	pr := process("while ! test -e /ready; do sleep 0.01; done; id -u; id -g")
	pr.UID, pr.GID, pr.Permitted, pr.Effective = 33, 34, 0, 0
	run, err := p.exec(c, pr, func(s *recipe.ExecSpec) { s.UserNS = true })
	if err != nil {
		t.Fatalf("exec: %v%s", err, callOf(err))
	}
	if got := run.wait(); got.out != "33\n34\n" {
		t.Errorf("exec: %+v", got)
	}
	uid, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID))
	if err != nil || !bytes.Contains(uid, fmt.Appendf(nil, "\nUid:\t%d\t%d\t", mappedID, mappedID)) {
		t.Errorf("on the host it isn't %d: %s, %v", mappedID, uid, err)
	}
	unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	if got, want := c.wait().out, "0\n0 100000 65536\n0\n0\npod\nfixed\n0 0\n65536\n"; got != want {
		t.Errorf("output:\n%s\nwant:\n%s", got, want)
	}
}

func TestSharedNamespaces(t *testing.T) {
	// The host's PID, network and IPC namespaces, its host name and /dev/shm.
	p := newPod(t, recipe.SandboxSpec{HostIPCShm: true}, unix.CLONE_NEWNS)
	root, _ := rootfs(t, nil)
	name := fmt.Sprintf("/dev/shm/recipe-%d", os.Getpid())
	if err := os.WriteFile(name, []byte("shared\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(name)
	spec := p.spec(root, "cat "+name+"; hostname; cat /proc/1/comm; for f in self/ns/pid self/ns/net self/ns/ipc; do readlink /proc/$f; done")
	c, err := p.launch(spec, unix.CLONE_NEWNS)
	if err != nil {
		t.Fatalf("%v%s", err, callOf(err))
	}
	want := "shared\n" + must(os.Hostname()) + "\n" + string(must(os.ReadFile("/proc/1/comm")))
	for _, ns := range []string{"pid", "net", "ipc"} {
		want += must(os.Readlink("/proc/self/ns/"+ns)) + "\n"
	}
	if got := c.wait(); got.out != want {
		t.Errorf("output:\n%s\nwant:\n%s", got.out, want)
	}

	// One PID namespace in the pod: pause is PID 1.
	p = plainPod(t)
	root, _ = rootfs(t, nil)
	c, err = p.launch(p.spec(root, "test $$ -gt 1 && cat /proc/1/comm"), unix.CLONE_NEWNS)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.wait(); got.out != "pause\n" {
		t.Errorf("%+v", got)
	}
}

func TestSandbox(t *testing.T) {
	score := 500
	p := newPod(t, recipe.SandboxSpec{Hostname: "web-0", ShmSize: 1 << 20, OOMScoreAdj: &score, Sysctls: map[string]string{
		"net.ipv4.conf.lo.forwarding": "1", "net/ipv4/tcp_syncookies": "0", "kernel.shm_rmid_forced": "1",
	}}, podNamespaces)
	proc := fmt.Sprintf("/proc/%d/", p.conn.PID())
	mounts := must(os.ReadFile(proc + "mounts"))
	var got []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		got = append(got, f[1]+" "+f[2]+" "+f[3][:2])
	}
	slices.Sort(got)
	if fmt.Sprint(got) != "[/ tmpfs ro /proc proc rw /shm tmpfs rw]" {
		t.Errorf("pause's mounts:\n%s", mounts)
	}
	if info := must(os.ReadFile(proc + "mountinfo")); bytes.Contains(info, []byte("shared:")) || bytes.Contains(info, []byte("master:")) {
		t.Errorf("mounts aren't private:\n%s", info)
	}
	if err := os.WriteFile(proc+"root/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("pause's root can be written: %v", err)
	}
	if b := must(os.ReadFile(proc + "oom_score_adj")); string(b) != "500\n" {
		t.Errorf("oom_score_adj %s", b)
	}
	root, _ := rootfs(t, nil)
	p.expect(p.spec(root, "hostname; cat /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/net/ipv4/tcp_syncookies /proc/sys/kernel/shm_rmid_forced"), "web-0\n1\n0\n1\n")

	for want, spec := range map[string]recipe.SandboxSpec{
		"setting sysctl net.no.such: no such file or directory":    {Sysctls: map[string]string{"net.no.such": "1"}},
		"setting sysctl net.ipv4.tcp_syncookies: invalid argument": {Sysctls: map[string]string{"net.ipv4.tcp_syncookies": "many"}},
		"setting the host name: invalid argument":                  {Hostname: strings.Repeat("x", 65)},
	} {
		if _, err := tryPod(t, spec, podNamespaces); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestCgroups(t *testing.T) {
	const pids = "/sys/fs/cgroup/pids"
	if _, err := os.Stat(pids + "/cgroup.procs"); err != nil {
		t.Skip("needs the v1 pids controller at "+pids+":", err)
	}
	group := func(name string) (string, *os.File) {
		dir := filepath.Join(pids, fmt.Sprintf("recipe-%d-%s", os.Getpid(), name))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir) })
		f, err := os.OpenFile(dir+"/cgroup.procs", os.O_WRONLY, 0)
		return filepath.Base(dir), keep(t, f, err)
	}
	sandbox, sandboxProcs := group("sandbox")
	name, procs := group("container")
	p := newPod(t, recipe.SandboxSpec{CgroupProcs: []*os.File{sandboxProcs}}, podNamespaces)
	if b := must(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.conn.PID()))); !strings.Contains(string(b), ":pids:/"+sandbox+"\n") {
		t.Errorf("pause is in\n%s", b)
	}
	for ns, want := range map[bool]string{false: "/" + name, true: "/"} {
		root, _ := rootfs(t, nil)
		spec := p.spec(root, "grep :pids: /proc/self/cgroup | cut -d: -f3")
		spec.Shm = false
		spec.CgroupProcs, spec.CgroupNS = []*os.File{procs}, ns
		p.expect(spec, want+"\n")
	}
}
