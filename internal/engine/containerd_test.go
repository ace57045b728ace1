package engine

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/test/busybox"
	"unipod.dev/unipod/test/containerd"
)

const busyboxImage = "unipod.test/busybox:1"

// TestContainerd runs pods on a real containerd, started here with its own
// directories: the engine's only tie to a runtime is the CRI.
func TestContainerd(t *testing.T) {
	if what := containerd.Missing(false); what != "" {
		t.Skip("needs " + what)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "busybox.tar")
	if err := os.WriteFile(archive, busybox.Image{Name: busyboxImage}.Archive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	service, _ := containerd.Start(t, containerd.Config{Dir: filepath.Join(dir, "c"), Image: busyboxImage, Archive: archive, Snapshotter: "native"})
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
