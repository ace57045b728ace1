package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri/fakecri"
	"unipod.dev/unipod/internal/podspec"
)

// statusOf is a container's status as the engine shows it.
func (b *bench) statusOf(uid types.UID, name string) v1.ContainerStatus {
	p, ok := b.Get(uid)
	if !ok {
		return v1.ContainerStatus{}
	}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.Name == name {
			return c
		}
	}
	return v1.ContainerStatus{}
}

// pass lets time go by in small steps until cond holds, and says how much it
// took.
func (b *bench) pass(clk *clocktesting.FakeClock, step time.Duration, what string, cond func() bool) time.Duration {
	b.t.Helper()
	began := clk.Now()
	for range 4000 {
		if cond() {
			return clk.Since(began)
		}
		clk.Step(step)
		time.Sleep(time.Millisecond) // for goroutines to notice
	}
	b.t.Fatalf("in vain for %s: %s", what, b.dump())
	return 0
}

func TestBackOff(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, func(_ *Config, rt *fakecri.Runtime) {
		rt.Scripts["app"] = []fakecri.Run{{ExitAfter: 100 * time.Millisecond, Code: 1}}
	})
	pod := newPod("crash", container("app"))
	b.apply(pod)
	b.pass(clk, 50*time.Millisecond, "back-off", func() bool {
		w := b.statusOf(pod.UID, "app").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	st := b.statusOf(pod.UID, "app")
	want := "back-off 10s restarting failed container=app pod=crash_default(uid-crash)"
	if st.State.Waiting.Message != want || st.RestartCount != 1 || st.LastTerminationState.Terminated.ExitCode != 1 {
		t.Errorf("waiting %q after %d restarts; want %q after 1", st.State.Waiting.Message, st.RestartCount, want)
	}
	took := b.pass(clk, 100*time.Millisecond, "the next restart", func() bool { return b.statusOf(pod.UID, "app").RestartCount == 2 })
	if took < 8*time.Second || took > 12*time.Second {
		t.Errorf("restarted after another %s, want 9s or so", took)
	}
}

func TestContainersStartTogether(t *testing.T) {
	release := make(chan struct{})
	b := newBench(t, clock.RealClock{}, func(_ *Config, rt *fakecri.Runtime) {
		rt.Pull = func(image string) error {
			if strings.Contains(image, "slow") {
				<-release
			}
			return nil
		}
	})
	pod := newPod("two", container("slow"), container("fast"))
	b.apply(pod)
	b.await("the fast one", func() bool { return b.statusOf(pod.UID, "fast").State.Running != nil })
	if w := b.statusOf(pod.UID, "slow").State.Waiting; w == nil || w.Reason != "ContainerCreating" {
		t.Errorf("the slow one is %+v", b.statusOf(pod.UID, "slow").State)
	}
	close(release)
	b.await("the slow one", func() bool { return b.statusOf(pod.UID, "slow").State.Running != nil })
}

func TestPullsAreSharedAndBounded(t *testing.T) {
	var now, most, pulls atomic.Int32
	release := make(chan struct{})
	b := newBench(t, clock.RealClock{}, func(c *Config, rt *fakecri.Runtime) {
		c.MaxParallelPulls = 2
		rt.Pull = func(string) error {
			pulls.Add(1)
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			now.Add(-1)
			return nil
		}
	})
	for i := range 12 {
		pod := newPod(fmt.Sprintf("p%d", i), container(fmt.Sprintf("image%d", i%4)))
		b.apply(pod)
	}
	b.await("two pulls", func() bool { return now.Load() == 2 })
	close(release)
	for i := range 12 {
		b.await("all", func() bool { return b.phase(types.UID(fmt.Sprintf("uid-p%d", i))) == v1.PodRunning })
	}
	if pulls.Load() != 4 || most.Load() != 2 {
		t.Errorf("%d pulls, %d at a time; want 4 and 2", pulls.Load(), most.Load())
	}
}

func TestDeleteDuringPull(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(_ *Config, rt *fakecri.Runtime) { rt.PullTime = time.Hour })
	pod := newPod("pulling", container("app"))
	b.apply(pod)
	b.await("the pull", func() bool { return b.has("Pulling image") })
	b.Delete(pod.UID, nil)
	b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
	if b.has("Failed") {
		t.Error("a pull that was called off counts as failed")
	}
}

func TestPullFails(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, func(_ *Config, rt *fakecri.Runtime) {
		rt.Pull = func(string) error { return errors.New("manifest unknown") }
	})
	pod := newPod("nopull", container("app"))
	b.apply(pod)
	reason := func() string {
		if w := b.statusOf(pod.UID, "app").State.Waiting; w != nil {
			return w.Reason
		}
		return ""
	}
	b.await("ErrImagePull", func() bool { return reason() == "ErrImagePull" })
	b.pass(clk, 100*time.Millisecond, "back-off", func() bool { return reason() == "ImagePullBackOff" })
	want := `Back-off pulling image "registry.test/app:1": ErrImagePull: manifest unknown`
	if got := b.statusOf(pod.UID, "app").State.Waiting.Message; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	for _, want := range []string{
		`Failed: Failed to pull image "registry.test/app:1": manifest unknown`,
		`Failed: Error: ErrImagePull`,
		`BackOff: Back-off pulling image "registry.test/app:1"`,
	} {
		b.await(want, func() bool { return b.has(want) })
	}
}

func TestHooksAndProbes(t *testing.T) {
	var mu sync.Mutex
	var ran []string
	ready := atomic.Bool{}
	b := newBench(t, clock.RealClock{}, func(_ *Config, rt *fakecri.Runtime) {
		rt.OnExec = func(name string, cmd []string) (string, int32, error) {
			mu.Lock()
			ran = append(ran, name+" "+strings.Join(cmd, " "))
			mu.Unlock()
			switch {
			case cmd[0] == "fail":
				return "no way", 3, nil
			case cmd[0] == "ready?" && !ready.Load():
				return "not yet", 1, nil
			}
			return "", 0, nil
		}
	})
	exec := func(cmd string) *v1.LifecycleHandler {
		return &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{cmd}}}
	}
	good, bad := container("good"), container("bad")
	good.Lifecycle = &v1.Lifecycle{PostStart: exec("begin"), PreStop: exec("finish")}
	good.ReadinessProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 1,
		ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"ready?"}}}}
	bad.Lifecycle = &v1.Lifecycle{PostStart: exec("fail")}
	pod := newPod("hooked", good, bad)
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	b.apply(pod)
	b.await("the failed hook's end", func() bool { return b.statusOf(pod.UID, "bad").State.Terminated != nil })
	b.await("the probe's failure", func() bool {
		return b.has("spec.containers{good} Unhealthy: Readiness probe failed: not yet")
	})
	if b.statusOf(pod.UID, "good").Ready {
		t.Error("ready although the probe fails")
	}
	ready.Store(true)
	b.await("readiness", func() bool { return b.statusOf(pod.UID, "good").Ready })
	b.Delete(pod.UID, nil)
	b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
	mu.Lock()
	defer mu.Unlock()
	all := strings.Join(ran, "\n")
	for _, want := range []string{"good begin", "bad fail", "good finish"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q did not run; these did:\n%s", want, all)
		}
	}
	if !b.has("spec.containers{bad} FailedPostStartHook: PostStartHook failed") || !b.has("bad} Killing: FailedPostStartHook") {
		t.Error("the failed hook is not on record")
	}
}

// TestAdoption: an engine that ends leaves its pods running; the next one goes
// on with them.
func TestAdoption(t *testing.T) {
	rt := fakecri.New(clock.RealClock{})
	defer rt.Close()
	dir := t.TempDir()
	cfg := Config{CRI: rt, Dir: filepath.Join(dir, "pods"), LogDir: filepath.Join(dir, "logs"), Logger: slog.New(slog.DiscardHandler)}
	pod := newPod("web", container("app"))
	live := func(during func(e *Engine, b *bench)) {
		e, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		b := &bench{Engine: e, t: t, rt: rt, changed: make(chan struct{})}
		b.apply(pod)
		during(e, b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	live(func(e *Engine, b *bench) {
		b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
		rt.Exit("app", 1, "")
		b.await("a restart", func() bool { st := b.statusOf(pod.UID, "app"); return st.RestartCount == 1 && st.State.Running != nil })
		got, _ := e.Get(pod.UID)
		pod.Status = got.Status
	})
	rt.Calls()
	id := rt.Container("app").Id
	live(func(_ *Engine, b *bench) {
		// It is ready from the first look on, and nothing is done to it.
		b.await("adoption", func() bool {
			return b.statusOf(pod.UID, "app").ContainerID == "fake://"+id && b.statusOf(pod.UID, "app").Ready
		})
		if calls := rt.Calls(); len(calls) > 0 {
			t.Errorf("adoption did %q", calls)
		}
		rt.Exit("app", 1, "")
		b.await("the next restart", func() bool {
			st := b.statusOf(pod.UID, "app")
			return st.RestartCount == 2 && st.State.Running != nil
		})
		b.Delete(pod.UID, ptr.To(time.Duration(0)))
		b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
	})
}

func TestOrphans(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	// An engine that is no more has left a pod behind.
	dir := filepath.Dir(b.cfg.Dir)
	other, err := New(Config{CRI: b.rt, Dir: b.cfg.Dir, LogDir: b.cfg.LogDir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- other.Run(ctx) }()
	gone := newPod("gone", container("app"))
	kept := newPod("kept", container("other"))
	o := &bench{Engine: other, t: t, rt: b.rt, changed: make(chan struct{})}
	o.apply(gone)
	o.apply(kept)
	o.await("both", func() bool { return o.phase(gone.UID) == v1.PodRunning && o.phase(kept.UID) == v1.PodRunning })
	cancel()
	<-done

	if err := b.CleanOrphans(t.Context(), func(uid PodUID) bool { return uid == kept.UID }); err != nil {
		t.Fatal(err)
	}
	if s, c := b.rt.Counts(); s != 1 || c != 1 {
		t.Errorf("%d sandboxes and %d containers, want one each", s, c)
	}
	for path, want := range map[string]bool{
		filepath.Join(dir, "pods", "uid-gone"): false, podspec.LogDirectory(b.cfg.LogDir, gone): false,
		filepath.Join(dir, "pods", "uid-kept"): true, podspec.LogDirectory(b.cfg.LogDir, kept): true,
	} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s exists: %v, want %v", path, err == nil, want)
		}
	}
}

// objects is a changeable Objects.
type objects struct {
	mu sync.Mutex
	m  map[string]*v1.ConfigMap
}

func (o *objects) set(name, key, value string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[string]*v1.ConfigMap{}
	}
	o.m[name] = &v1.ConfigMap{Data: map[string]string{key: value}}
}

func (o *objects) ConfigMap(_, name string) (*v1.ConfigMap, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := o.m[name]; m != nil {
		return m, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("configmap"), name)
}

func (o *objects) Secret(_, name string) (*v1.Secret, error) {
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
}

func TestVolumes(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	src := &objects{}
	b := newBench(t, clk, func(c *Config, _ *fakecri.Runtime) { c.Objects = src })
	app := container("app")
	app.VolumeMounts = []v1.VolumeMount{{Name: "settings", MountPath: "/etc/app"}}
	app.Env = []v1.EnvVar{{Name: "MODE", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{
		LocalObjectReference: v1.LocalObjectReference{Name: "env"}, Key: "mode"}}}}
	pod := newPod("configured", app)
	pod.Spec.Volumes = []v1.Volume{{Name: "settings", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{
		LocalObjectReference: v1.LocalObjectReference{Name: "settings"}, DefaultMode: ptr.To[int32](0o644)}}}}
	b.apply(pod)
	b.await("FailedMount", func() bool {
		return b.has(`FailedMount: MountVolume.SetUp failed for volume "settings" : configmap "settings" not found`)
	})
	src.set("settings", "key", "one")
	b.pass(clk, 100*time.Millisecond, "the environment's lack", func() bool {
		w := b.statusOf(pod.UID, "app").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && w.Message == `configmap "env" not found`
	})
	src.set("env", "mode", "test")
	b.pass(clk, 500*time.Millisecond, "Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })

	file := filepath.Join(b.cfg.Dir, string(pod.UID), "volumes/kubernetes.io~configmap/settings/key")
	content := func() string { text, _ := os.ReadFile(file); return string(text) }
	if content() != "one" {
		t.Errorf("the volume shows %q", content())
	}
	src.set("settings", "key", "two")
	b.ObjectsChanged("default")
	b.await("the change", func() bool { return content() == "two" })
}

func TestResize(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	app := container("app")
	memory := func(q string) v1.ResourceRequirements {
		l := v1.ResourceList{v1.ResourceMemory: resource.MustParse(q), v1.ResourceCPU: resource.MustParse("1")}
		return v1.ResourceRequirements{Limits: l, Requests: l}
	}
	app.Resources = memory("100Mi")
	pod := newPod("grows", app)
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	b.rt.Calls()
	pod.Spec.Containers[0].Resources = memory("200Mi")
	pod.Generation = 2
	b.apply(pod)
	b.await("the resize", func() bool { return b.has("ResizeCompleted: Pod resize completed") })
	if calls := b.rt.Calls(); len(calls) != 1 || calls[0] != "UpdateContainerResources app/0" {
		t.Errorf("it did %q", calls)
	}
	b.await("its status", func() bool {
		got, _ := b.Get(pod.UID)
		return got.Status.ContainerStatuses[0].Resources.Limits.Memory().String() == "200Mi" && got.Status.ObservedGeneration == 2
	})
}

func TestTerminationMessages(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, nil)
	file, logged := container("file"), container("logged")
	logged.TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	pod := newPod("speaks", file, logged)
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	for _, m := range b.rt.Container("file").Mounts {
		if m.ContainerPath == "/dev/termination-log" {
			if err := os.WriteFile(m.HostPath, []byte(strings.Repeat("x", 5000)+"the end"), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	log := b.rt.Container("logged").LogPath
	lines := ""
	for i := range 100 {
		lines += fmt.Sprintf("2026-01-01T00:00:00.000000000Z stderr F line %d\n", i)
	}
	if err := os.WriteFile(log, []byte(lines), 0o640); err != nil {
		t.Fatal(err)
	}
	b.rt.Exit("file", 0, "")
	b.rt.Exit("logged", 1, "")
	b.await("Failed", func() bool { return b.phase(pod.UID) == v1.PodFailed })
	m := b.statusOf(pod.UID, "file").State.Terminated.Message
	if len(m) != 4096 || !strings.HasSuffix(m, "xthe end") {
		t.Errorf("message of the file: %d bytes, %q", len(m), m[max(len(m)-20, 0):])
	}
	m = b.statusOf(pod.UID, "logged").State.Terminated.Message
	if got := strings.Count(m, "\n"); got != 80 || !strings.HasSuffix(m, "line 99\n") || !strings.HasPrefix(m, "line 20\n") {
		t.Errorf("message of the log: %d lines: %q", got, m)
	}
}

func TestLogRotation(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, nil)
	pod := newPod("chatty", container("app"))
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	dir := filepath.Join(podspec.LogDirectory(b.cfg.LogDir, pod), "app")
	log := filepath.Join(dir, "0.log")
	for range 7 {
		if err := os.WriteFile(log, nil, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(log, maxLogSize+1); err != nil {
			t.Fatal(err)
		}
		b.pass(clk, time.Second, "rotation", func() bool { _, err := os.Stat(log); return os.IsNotExist(err) })
		b.await("the reopening", func() bool { return strings.Contains(strings.Join(b.rt.Calls(), " "), "ReopenContainerLog") })
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	packed := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".gz") {
			packed++
		}
	}
	// With the one the runtime opens again there are five.
	if len(entries) != 4 || packed != 3 {
		t.Errorf("%d files set aside, %d of them compressed: %v", len(entries), packed, entries)
	}
}

// TestThousandLives: nothing grows with the number of pods that have been.
func TestThousandLives(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	count := func() (goroutines, files int) {
		runtime.GC()
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	round := func(from, to int) {
		for i := from; i < to; i++ {
			pod := newPod(fmt.Sprintf("p%d", i), container("app"))
			pod.Spec.InitContainers = []v1.Container{container("init")}
			b.apply(pod)
		}
		for i := from; i < to; i++ {
			uid := types.UID(fmt.Sprintf("uid-p%d", i))
			b.await("Running", func() bool { return b.phase(uid) == v1.PodRunning })
			b.Delete(uid, nil)
		}
		b.await("all gone", func() bool { return len(b.List()) == 0 })
	}
	b.rt.Scripts["init"] = []fakecri.Run{{ExitAfter: time.Microsecond}}
	round(0, 50)
	g0, f0 := count()
	for n := 50; n < 1000; n += 50 {
		round(n, n+50)
	}
	b.await("quiet", func() bool { g, f := count(); return g <= g0+5 && f <= f0+5 })
	if s, c := b.rt.Counts(); s+c > 0 {
		t.Errorf("%d sandboxes and %d containers are left", s, c)
	}
	for _, dir := range []string{b.cfg.Dir, b.cfg.LogDir} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%d entries are left in %s", len(left), dir)
		}
	}
}
