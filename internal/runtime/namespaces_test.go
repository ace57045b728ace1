package runtime

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func namespaceOf(t *testing.T, pid int, kind string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) pid(id string) int {
	c, err := w.container(id)
	if err != nil {
		w.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.PID
}

// What a pod's containers share, by mode.
func TestNamespaces(t *testing.T) {
	w := newWorld(t)
	const pod, node, own = "pod", "node", "own"
	for _, tc := range []struct {
		name string
		mod  func(*runtimeapi.NamespaceOption)
		want map[string]string
	}{
		{"private", func(o *runtimeapi.NamespaceOption) {}, map[string]string{"net": pod, "ipc": pod, "uts": pod, "mnt": own, "pid": own, "user": node}},
		{"sharedpid", func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD }, map[string]string{"net": pod, "ipc": pod, "uts": pod, "mnt": own, "pid": pod, "user": node}},
		{"host", func(o *runtimeapi.NamespaceOption) {
			o.Pid, o.Network, o.Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
		}, map[string]string{"net": node, "ipc": node, "uts": node, "mnt": own, "pid": node, "user": node}},
		{"userns", func(o *runtimeapi.NamespaceOption) { o.UsernsOptions = userns() }, map[string]string{"net": pod, "ipc": pod, "uts": pod, "mnt": own, "pid": own, "user": pod}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := w.pod(tc.name, func(c *runtimeapi.PodSandboxConfig) { tc.mod(c.Linux.SecurityContext.NamespaceOptions) })
			a := w.pid(p.start("a", []string{"sleep", "1000"}))
			b := w.pid(p.start("b", []string{"sleep", "1000"}))
			s, err := w.sandbox(p.id)
			if err != nil {
				t.Fatal(err)
			}
			for kind, want := range tc.want {
				self := namespaceOf(t, os.Getpid(), kind)
				pause := namespaceOf(t, s.conn.PID(), kind)
				na, nb := namespaceOf(t, a, kind), namespaceOf(t, b, kind)
				got := "?"
				switch {
				case na == self && nb == self:
					got = node
				case na == nb && na == pause:
					got = pod
				case na != nb && na != pause && na != self:
					got = own
				}
				if got != want {
					t.Errorf("%s is %s, want %s (node %s, pause %s, containers %s %s)", kind, got, want, self, pause, na, nb)
				}
			}
		})
	}
}

func userns() *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 100000, Length: 65536}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func TestUserNamespace(t *testing.T) {
	w := newWorld(t)
	p := w.pod("u", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns()
	})
	dir := t.TempDir()
	os.WriteFile(dir+"/file", nil, 0o644)
	mount := func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/vol", UidMappings: userns().Uids, GidMappings: userns().Gids}}
	}
	out, st := p.run("id -u; stat -c %u /bin/sh /vol/file /etc/hostname; touch /made /vol/made && echo ok; echo x >/dev/null && cat /proc/self/uid_map; touch /dev/shm/x && mount | grep -c mqueue", mount)
	f := strings.Fields(out)
	if st.ExitCode != 0 || strings.Join(f, " ") != "0 0 0 0 ok 0 100000 65536 1" {
		t.Errorf("in the user namespace: exit %d, %q", st.ExitCode, out)
	}
	if fi, err := os.Stat(dir + "/made"); err != nil || ownerOf(fi) != 0 {
		t.Errorf("a file made in the volume: %v, owner %d", err, ownerOf(fi))
	}
	id := p.start("sleeper", []string{"sleep", "1000"})
	if out, code := w.exec(id, "sh", "-c", "id -u; echo >/proc/self/fd/1"); code != 0 {
		t.Errorf("exec: %q, exit %d", out, code)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid(id)))
	if err != nil || !strings.Contains(string(b), "Uid:\t100000\t") {
		t.Errorf("on the host the container runs as: %v %.400s", err, b)
	}
}

// In a pod with one PID namespace pause is PID 1 and reaps; what a container
// leaves behind ends with it.
func TestSharedPID(t *testing.T) {
	w := newWorld(t)
	p := w.pod("s", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	id := p.start("keeper", []string{"sleep", "1000"})
	if out, _ := w.exec(id, "sh", "-c", "cat /proc/1/comm; (sleep 0 & exec true) ; sleep 0.3; ps | grep -c Z"); !strings.HasPrefix(out, "pause\n") {
		t.Errorf("PID 1: %q", out)
	}
	_, st := p.run("setsid sleep 4321 & exit 0")
	if st.ExitCode != 0 {
		t.Errorf("exit %d", st.ExitCode)
	}
	if out, _ := w.exec(id, "sh", "-c", "ps | grep -v grep | grep -c 'sleep 4321'"); strings.TrimSpace(out) != "0" {
		t.Errorf("an orphan outlived its container: %q", out)
	}
	if out, _ := w.exec(id, "sh", "-c", "ls -l /proc/1/exe 2>&1; cat /proc/1/exe 2>&1 | wc -c"); !strings.Contains(out, "ermission denied") {
		t.Errorf("pause's binary can be reached: %q", out)
	}
}

func TestPauseDies(t *testing.T) {
	w := newWorld(t)
	p := w.pod("d")
	id := p.start("a", []string{"sleep", "1000"})
	s, _ := w.sandbox(p.id)
	s.conn.Terminate()
	if st := w.wait(id); st.ExitCode != 137 {
		t.Errorf("exit %d", st.ExitCode)
	}
	<-s.ended // its containers' ends are told first
	if s.state() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Error("the sandbox still says it is ready")
	}
	if _, err := w.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig("b", nil)}); err == nil {
		t.Error("a container was created in a dead sandbox")
	}
}
