package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri"
)

const busyboxImage = "unipod.test/busybox:1"

// TestContainerd runs pods on a real containerd, started here with its own
// directories: the engine's only tie to a runtime is the CRI.
func TestContainerd(t *testing.T) {
	for _, tool := range []string{"containerd", "ctr", "runc", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s on PATH (Debian: containerd, runc, busybox-static)", tool)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	service := startContainerd(t)
	b := newRealBench(t, service)
	t.Run("life", func(t *testing.T) { realLife(t, b) })
	t.Run("crash", func(t *testing.T) { realCrash(t, b) })
	t.Run("job", func(t *testing.T) { realJob(t, b) })
	t.Run("probe", func(t *testing.T) { realProbe(t, b) })
}

func newRealBench(t *testing.T, service cri.Service) *bench {
	dir := t.TempDir()
	e, err := New(Config{
		CRI: service, Dir: filepath.Join(dir, "pods"), LogDir: filepath.Join(dir, "logs"),
		CgroupRoot: "/unipod-test-" + filepath.Base(dir), Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Engine: e, t: t, removed: map[types.UID]bool{}, changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(2)
	events := e.Watch(ctx)
	go func() {
		defer wg.Done()
		for ev := range events {
			b.note(ev)
		}
	}()
	go func() { defer wg.Done(); _ = e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		// What a failed test left behind.
		sweeper, err := New(e.cfg)
		if err == nil {
			err = sweeper.CleanOrphans(context.Background(), nil)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return b
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// shell is a container that runs a script. Pods are of the host's network:
// this containerd has no plugins for another.
func shell(name, script string) v1.Container {
	c := container(name)
	c.Image, c.Command = busyboxImage, []string{"/bin/busybox", "sh", "-c", script}
	return c
}

func hostPod(name string, containers ...v1.Container) *v1.Pod {
	pod := newPod(name, containers...)
	pod.Spec.HostNetwork, pod.Spec.DNSPolicy = true, v1.DNSDefault
	return pod
}

func (b *bench) finish(t *testing.T, pod *v1.Pod) {
	t.Helper()
	b.Delete(pod.UID, nil)
	b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
}

// realLife: init container, shared volume, sidecar, environment, log, orderly
// end.
func realLife(t *testing.T, b *bench) {
	init := shell("init", "echo from init > /data/file")
	side := shell("side", "trap 'echo side ends >> /data/end; exit 0' TERM; while :; do sleep 0.1; done")
	side.RestartPolicy = ptr.To(v1.ContainerRestartPolicyAlways)
	app := shell("app", `echo "$MESSAGE: $(cat /data/file)"; trap 'echo app ends >> /data/end; exit 0' TERM; while :; do sleep 0.1; done`)
	app.Env = []v1.EnvVar{{Name: "MESSAGE", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}}}
	pod := hostPod("life", app)
	pod.Spec.InitContainers = []v1.Container{init, side}
	dir := t.TempDir()
	pod.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir, Type: ptr.To(v1.HostPathUnset)}}}}
	mount := v1.VolumeMount{Name: "data", MountPath: "/data"}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = []v1.VolumeMount{mount}
		}
	}
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	log := filepath.Join(b.cfg.LogDir, "default_life_uid-life/app/0.log")
	b.await("the log", func() bool {
		text, _ := os.ReadFile(log)
		return bytes.Contains(text, []byte("life: from init"))
	})
	b.finish(t, pod)
	end, _ := os.ReadFile(filepath.Join(dir, "end"))
	if string(end) != "app ends\nside ends\n" {
		t.Errorf("the end was %q", end)
	}
	if _, err := os.Stat(filepath.Join(b.cfg.Dir, string(pod.UID))); !os.IsNotExist(err) {
		t.Errorf("the pod's directory is left: %v", err)
	}
}

// realCrash: exit code, termination message, restart, then the back-off.
func realCrash(t *testing.T, b *bench) {
	pod := hostPod("crash", shell("app", "echo it broke > /dev/termination-log; exit 3"))
	b.apply(pod)
	b.await("CrashLoopBackOff", func() bool {
		w := b.statusOf(pod.UID, "app").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	st := b.statusOf(pod.UID, "app")
	last := st.LastTerminationState.Terminated
	if st.RestartCount != 1 || last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.Message != "it broke\n" {
		t.Errorf("restarts %d, last %+v", st.RestartCount, last)
	}
	b.finish(t, pod)
}

// realJob: a pod that ends by itself.
func realJob(t *testing.T, b *bench) {
	good, bad := shell("good", "exit 0"), shell("missing", "true")
	bad.Command = []string{"/no/such/program"}
	pod := hostPod("job", good, bad)
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	b.apply(pod)
	b.await("Failed", func() bool { return b.phase(pod.UID) == v1.PodFailed })
	if c := b.statusOf(pod.UID, "good").State.Terminated; c == nil || c.ExitCode != 0 || c.Reason != "Completed" {
		t.Errorf("good: %+v", b.statusOf(pod.UID, "good").State)
	}
	if c := b.statusOf(pod.UID, "missing").State.Terminated; c == nil || c.ExitCode != 128 || c.Reason != "StartError" {
		t.Errorf("missing: %+v", b.statusOf(pod.UID, "missing").State)
	}
	b.finish(t, pod)
}

// realProbe: an exec liveness probe kills a container.
func realProbe(t *testing.T, b *bench) {
	app := shell("app", "touch /alive; sleep 1; rm /alive; sleep 1000")
	app.LivenessProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, SuccessThreshold: 1, FailureThreshold: 2,
		TerminationGracePeriodSeconds: ptr.To[int64](1),
		ProbeHandler:                  v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"/bin/busybox", "cat", "/alive"}}}}
	pod := hostPod("probed", app)
	pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](1)
	b.apply(pod)
	b.await("a restart", func() bool { return b.statusOf(pod.UID, "app").RestartCount > 0 })
	if !b.has("app} Killing: Container app failed liveness probe, will be restarted") || !b.has("app} Unhealthy: Liveness probe failed:") {
		t.Error("the kill is not on record")
	}
	b.finish(t, pod)
}

// startContainerd starts a containerd of this test and returns its CRI.
func startContainerd(t *testing.T) cri.Service {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "c.sock")
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, busyboxImage, filepath.Join(dir, "cni"), filepath.Join(dir, "cni"))
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("containerd: %s", text[max(len(text)-6000, 0):])
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		log.Close()
	})
	var service cri.Service
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		s, closer, err := cri.Dial(t.Context(), socket)
		if err == nil {
			service = s
			t.Cleanup(func() { closer.Close() })
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %v", err)
		}
	}
	archive := filepath.Join(dir, "busybox.tar")
	writeBusybox(t, archive)
	if out, err := exec.Command("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", archive).CombinedOutput(); err != nil {
		t.Fatalf("importing the image: %v: %s", err, out)
	}
	return service
}

// writeBusybox writes an image archive with nothing in it but busybox. Its
// default command waits, so that it also serves as the sandbox's image.
func writeBusybox(t *testing.T, file string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		name string
		mode int64
		data []byte
	}
	pack := func(entries ...entry) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range entries {
			h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Typeflag: tar.TypeReg}
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(e.data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	entries := []entry{{"bin/", 0o755, nil}, {"bin/busybox", 0o755, program}}
	for _, name := range []string{"sh", "sleep", "cat", "touch", "rm", "echo"} {
		entries = append(entries, entry{"bin/" + name, 0o755, program})
	}
	layer := pack(entries...)
	sum := sha256.Sum256(layer)
	config, _ := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"/bin/sleep", "100000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	manifest, _ := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{busyboxImage}, "Layers": []string{"layer.tar"}}})
	if err := os.WriteFile(file, pack(entry{"layer.tar", 0o644, layer}, entry{"config.json", 0o644, config}, entry{"manifest.json", 0o644, manifest}), 0o600); err != nil {
		t.Fatal(err)
	}
}
