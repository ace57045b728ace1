package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refused wants a container that isn't made or doesn't start, for a reason
// that names what is wrong.
func (p *pod) refused(t *testing.T, reason string, mod ...containerMod) {
	t.Helper()
	id, err := p.create("refused", []string{"true"}, mod...)
	if err == nil {
		_, err = p.w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("want an error about %q, got %v", reason, err)
	}
}

func mounting(m ...*runtimeapi.Mount) containerMod {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = append(c.Mounts, m...) }
}

func TestHostPaths(t *testing.T) {
	w := newWorld(t)
	p := w.pod("hostpath")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing", "deep")
	p.check(t, "cat /f /d/file; touch /missing/x /new/deep/place/x; echo more >>/f; echo x 2>/dev/null >/r/x; echo $?",
		"content content 1", mounting(
			&runtimeapi.Mount{HostPath: file, ContainerPath: "/f"},
			&runtimeapi.Mount{HostPath: dir, ContainerPath: "/d", Readonly: true},
			&runtimeapi.Mount{HostPath: missing, ContainerPath: "/missing"},
			&runtimeapi.Mount{HostPath: dir, ContainerPath: "/new/deep/place"},
			&runtimeapi.Mount{HostPath: dir, ContainerPath: "/r", Readonly: true},
		))
	for _, made := range []string{missing + "/x", dir + "/x"} {
		if _, err := os.Stat(made); err != nil {
			t.Error(err)
		}
	}
	if b, _ := os.ReadFile(file); string(b) != "content\nmore\n" {
		t.Errorf("the file: %q", b)
	}
	// A mount in another's place, named the wrong way round.
	sub := t.TempDir()
	os.WriteFile(sub+"/inner", nil, 0o644)
	p.check(t, "ls /a /a/b", "/a: b file missing x /a/b: inner", mounting(
		&runtimeapi.Mount{HostPath: sub, ContainerPath: "/a/b"}, &runtimeapi.Mount{HostPath: dir, ContainerPath: "/a"}))
	p.refused(t, "host_path", mounting(&runtimeapi.Mount{HostPath: "relative", ContainerPath: "/x"}))
	p.refused(t, "container_path", mounting(&runtimeapi.Mount{HostPath: dir}))
	p.refused(t, "fast", mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/x", MountOptions: []string{"fast"}}))
	p.refused(t, file, mounting(&runtimeapi.Mount{HostPath: file, ContainerPath: "/bin"}))
}

func tmpfs(t *testing.T, at string, flags uintptr) {
	t.Helper()
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	if err := unix.Mount("", at, "", flags, ""); err != nil {
		t.Fatal(err)
	}
}

func TestPropagation(t *testing.T) {
	w := newWorld(t)
	p := w.pod("prop", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	shared, private := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "p")
	tmpfs(t, shared, unix.MS_SHARED)
	tmpfs(t, private, unix.MS_PRIVATE)
	for _, tc := range []struct {
		mode         runtimeapi.MountPropagation
		toContainer  bool
		fromTheOther bool
	}{
		{runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(tc.mode.String(), func(t *testing.T) {
			id := p.start("prop", []string{"sleep", "1000"},
				secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Privileged = true }),
				mounting(&runtimeapi.Mount{HostPath: shared, ContainerPath: "/m", Propagation: tc.mode}))
			name := strings.ToLower(tc.mode.String())
			tmpfs(t, filepath.Join(shared, name), unix.MS_SHARED)
			os.WriteFile(filepath.Join(shared, name, "host"), nil, 0o644)
			if _, code := w.exec(id, "test", "-e", "/m/"+name+"/host"); (code == 0) != tc.toContainer {
				t.Errorf("a mount of the host is seen in the container: %v", code == 0)
			}
			if out, code := w.exec(id, "sh", "-c", "mkdir /m/c"+name+" && mount -t tmpfs t /m/c"+name+" && touch /m/c"+name+"/inside"); code != 0 {
				t.Fatalf("mounting in the container: %s", out)
			}
			_, err := os.Stat(filepath.Join(shared, "c"+name, "inside"))
			if (err == nil) != tc.fromTheOther {
				t.Errorf("a mount of the container is seen on the host: %v", err == nil)
			}
			if err == nil {
				unix.Unmount(filepath.Join(shared, "c"+name), unix.MNT_DETACH)
			}
		})
	}
	p.refused(t, "not a shared mount", mounting(&runtimeapi.Mount{HostPath: private, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}))
	p.refused(t, "not a shared or slave mount", mounting(&runtimeapi.Mount{HostPath: private, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}))
}

func TestRecursiveReadonly(t *testing.T) {
	w := newWorld(t)
	p := w.pod("rro")
	dir := t.TempDir()
	tmpfs(t, dir+"/sub", unix.MS_PRIVATE)
	const try = "touch /m/x 2>/dev/null; echo $?; touch /m/sub/x 2>/dev/null; echo $?"
	p.check(t, try, "1 1", mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}))
	p.check(t, try, "1 0", mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", Readonly: true}))
	p.refused(t, "recursive_read_only", mounting(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", RecursiveReadOnly: true}))
}

func TestImageVolumes(t *testing.T) {
	w := newWorld(t)
	p := w.pod("imagevol")
	vol := func(at, sub, image string) containerMod {
		return mounting(&runtimeapi.Mount{ContainerPath: at, ImageSubPath: sub, Readonly: true, Image: &runtimeapi.ImageSpec{Image: image}})
	}
	id, err := p.create("ref", []string{"true"}, vol("/i", "", testImage))
	if err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.Mounts[0].Image.ImageRef != st.ImageId || st.ImageId == "" {
		t.Errorf("the volume's image is %q, want that of the container's image, %q", st.Mounts[0].Image.ImageRef, st.ImageId)
	}
	// Its creation fails, not its start.
	for _, refused := range []containerMod{vol("/i", "no/such", testImage), vol("/i", "", "localhost/none"),
		mounting(&runtimeapi.Mount{ContainerPath: "/i", Image: &runtimeapi.ImageSpec{Image: testImage}})} {
		if id, err := p.create("refused", []string{"true"}, refused); err == nil {
			t.Errorf("%s was made", id)
		}
	}
	p.check(t, "cat /i/etc/group | head -n 1; ls /e; touch /i/x 2>/dev/null; echo $?; echo x 2>/dev/null >>/e/passwd; echo $?", "root:x:0: group passwd 1 1",
		vol("/i", "", testImage), vol("/e", "etc", testImage))
	p.refused(t, "image_sub_path", vol("/i", "no/such", testImage))
	p.refused(t, "localhost/none", vol("/i", "", "localhost/none"))
	// What leads out of the image stays in it.
	p.check(t, "ls /i/etc", "group passwd", vol("/i", "../../..", testImage))
}

func TestStopSignal(t *testing.T) {
	w := newWorld(t)
	p := w.pod("stop")
	trap := []string{"sh", "-c", "trap 'echo usr1; exit 11' USR1; trap 'echo term; exit 12' TERM; echo up; while :; do sleep 0.05; done"}
	for _, tc := range []struct {
		name string
		sig  runtimeapi.Signal
		want string
		code int32
	}{{"default", runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "up\nterm\n", 12}, {"usr1", runtimeapi.Signal_SIGNAL_SIGUSR1, "up\nusr1\n", 11}} {
		t.Run(tc.name, func(t *testing.T) {
			id := p.start(tc.name, trap, func(c *runtimeapi.ContainerConfig) { c.StopSignal = tc.sig })
			w.waitLog(t, id, "up")
			if _, err := w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
				t.Fatal(err)
			}
			st := w.status(id)
			if out := w.output(id); out != tc.want || st.ExitCode != tc.code {
				t.Errorf("exit %d, log %q", st.ExitCode, out)
			}
		})
	}
	// A signal that is ignored: killed after the timeout.
	id := p.start("deaf", []string{"sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"})
	w.waitLog(t, id, "up")
	if _, err := w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.ExitCode != 137 {
		t.Errorf("a deaf container: exit %d", st.ExitCode)
	}
}

// waitLog waits until a running container's log holds text.
func (w *world) waitLog(t *testing.T, id, text string) {
	t.Helper()
	for range 1000 {
		if b, _ := os.ReadFile(w.status(id).LogPath); strings.Contains(string(b), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%q didn't come to the log", text)
}

func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	p := w.pod("errors")
	for _, tc := range []struct {
		name string
		cmd  []string
		mod  containerMod
		want []string
	}{
		{"not found", []string{"no-such-command"}, nil, []string{"no-such-command", "not found"}},
		{"path not found", []string{"/no/such"}, nil, []string{"/no/such", "no such file"}},
		{"directory", []string{"/etc"}, nil, []string{"/etc", "permission denied"}},
		{"not executable", []string{"/etc/passwd"}, nil, []string{"/etc/passwd", "permission denied"}},
		{"working directory", []string{"true"}, func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd/x" }, []string{"/etc/passwd/x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var mods []containerMod
			if tc.mod != nil {
				mods = append(mods, tc.mod)
			}
			id, err := p.create("x", tc.cmd, mods...)
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id})
			if err == nil {
				t.Fatal("it started")
			}
			st := w.status(id)
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) || !strings.Contains(st.Message, want) {
					t.Errorf("want %q in the error %q and the message %q", want, err, st.Message)
				}
			}
			if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" {
				t.Errorf("%s, exit %d, %s", st.State, st.ExitCode, st.Reason)
			}
		})
	}
}

func TestTargetPID(t *testing.T) {
	w := newWorld(t)
	p := w.pod("target")
	app := p.start("app", []string{"sleep", "4711"})
	target := func(id string) containerMod {
		return secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
			sc.NamespaceOptions.Pid, sc.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, id
		})
	}
	debug := p.start("debug", []string{"sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; echo; sleep 1000"}, target(app))
	w.waitLog(t, debug, "sleep 4711")
	if a, b := namespaceOf(t, w.pid(app), "pid"), namespaceOf(t, w.pid(debug), "pid"); a != b {
		t.Errorf("PID namespaces %s and %s", a, b)
	}
	if a, b := namespaceOf(t, w.pid(app), "mnt"), namespaceOf(t, w.pid(debug), "mnt"); a == b {
		t.Error("they share their mounts")
	}
	if out, code := w.exec(debug, "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"); code != 0 || out != "sleep 4711 " {
		t.Errorf("exec in it: %q", out)
	}
	// The end of the one leaves the other alone.
	if _, err := w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: debug}); err != nil {
		t.Fatal(err)
	}
	if st := w.status(app); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the target is %s", st.State)
	}
	other := w.pod("other").start("app", []string{"sleep", "1000"})
	p.refused(t, "another pod", target(other))
	p.refused(t, "target container", target("0123456789"))
	p.refused(t, "not running", target(debug))
}

func TestExecInUserNamespace(t *testing.T) {
	w := newWorld(t)
	p := w.pod("u", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns()
	})
	id := p.start("app", []string{"sleep", "1000"}, secured(func(sc *runtimeapi.LinuxContainerSecurityContext) {
		sc.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}))
	out, code := w.exec(id, "sh", "-c", "id -u; cut -c1-60 /proc/self/uid_map | tr -s ' '; touch /tmp/x && stat -c %u /tmp/x; echo err >/proc/self/fd/2; cat /etc/hosts | wc -l")
	if code != 0 || !strings.HasPrefix(strings.Join(strings.Fields(out), " "), "1000 0 100000 65536 1000") {
		t.Errorf("exit %d: %q", code, out)
	}
	if a, b := namespaceOf(t, w.pid(id), "user"), namespaceOf(t, os.Getpid(), "user"); a == b {
		t.Error("the container is in the host's user namespace")
	}
}

// readGroup reads a file of a container's cgroup: controller/v1 on cgroup v1,
// v2 on cgroup v2.
func (w *world) readGroup(t *testing.T, id, controller, v1, v2 string) string {
	t.Helper()
	c, err := w.container(id)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("/sys/fs/cgroup", controller, c.rec.Cgroup, v1)
	if w.cfg.Cgroups.Version() == 2 {
		path = filepath.Join("/sys/fs/cgroup", c.rec.Cgroup, v2)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func limits(f func(*runtimeapi.LinuxContainerResources)) containerMod {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{}
		f(c.Linux.Resources)
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t)
	p := w.pod("limits")
	id := p.start("app", []string{"sleep", "1000"}, limits(func(r *runtimeapi.LinuxContainerResources) {
		r.MemoryLimitInBytes, r.CpuPeriod, r.CpuQuota, r.CpuShares, r.OomScoreAdj = 32<<20, 50000, 25000, 512, 500
	}))
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", w.pid(id))); err != nil || strings.TrimSpace(string(b)) != "500" {
		t.Errorf("oom_score_adj %q, %v", b, err)
	}
	if got := w.readGroup(t, id, "memory", "memory.limit_in_bytes", "memory.max"); got != "33554432" {
		t.Errorf("memory limit %s", got)
	}
	if w.cfg.Cgroups.Version() == 1 {
		if q, s := w.readGroup(t, id, "cpu", "cpu.cfs_quota_us", ""), w.readGroup(t, id, "cpu", "cpu.shares", ""); q != "25000" || s != "512" {
			t.Errorf("quota %s, shares %s", q, s)
		}
	} else if got := w.readGroup(t, id, "", "", "cpu.max"); got != "25000 50000" {
		t.Errorf("cpu.max %s", got)
	}
	pid := w.pid(id)
	_, err := w.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 256}})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.readGroup(t, id, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" || w.pid(id) != pid {
		t.Errorf("memory limit after the update %s, PID %d, was %d", got, w.pid(id), pid)
	}
	r := w.status(id).Resources.Linux
	if r.MemoryLimitInBytes != 64<<20 || r.CpuShares != 256 || r.CpuQuota != 25000 {
		t.Errorf("status after the update: %v", r)
	}
	// A container that isn't started yet takes its update along.
	created, err := p.create("later", []string{"sleep", "1000"}, limits(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 16 << 20 }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: created, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
		t.Fatal(err)
	}
	if got := w.readGroup(t, created, "memory", "memory.limit_in_bytes", "memory.max"); got != "25165824" {
		t.Errorf("memory limit of the later one %s", got)
	}
	p.refused(t, "hugepage", limits(func(r *runtimeapi.LinuxContainerResources) {
		r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 3 << 20}}
	}))
	p.refused(t, "cpuset", limits(func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "900-905" }))
}

func TestOOMKilled(t *testing.T) {
	w := newWorld(t)
	p := w.pod("oom")
	id := p.start("hog", []string{"sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=200M count=1"}, limits(func(r *runtimeapi.LinuxContainerResources) {
		r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 16<<20, 16<<20
	}))
	if st := w.wait(id); st.ExitCode != 137 || st.Reason != "OOMKilled" {
		t.Errorf("exit %d, %s", st.ExitCode, st.Reason)
	}
}

// The image's volumes can be written to even where its root can't.
func TestReadonlyRootfsVolume(t *testing.T) {
	w := newWorld(t)
	p := w.pod("vol")
	id, err := p.create("app", []string{"sh", "-c", "cat /etc/passwd | head -c 4; echo; touch /home/x; echo $?; touch /var/x 2>/dev/null; echo $?"},
		secured(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.ReadonlyRootfs = true }))
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.container(id)
	if err != nil {
		t.Fatal(err)
	}
	// As an image whose configuration says VOLUME /home.
	if err := c.update(func(rec *ContainerRecord) { rec.ImageConfig.Volumes = map[string]struct{}{"/home": {}} }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	w.wait(id)
	if out := w.output(id); out != "root\n0\n1\n" {
		t.Errorf("%q", out)
	}
}
