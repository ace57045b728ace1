package upkeep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri/fakecri"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/stats"
	"unipod.dev/unipod/internal/upkeep/eviction"
	"unipod.dev/unipod/internal/upkeep/imagegc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a keeper over a real engine on a fake runtime, and a machine that
// has left what the test says.
type bench struct {
	*Keeper
	t   *testing.T
	e   *engine.Engine
	rt  *fakecri.Runtime
	dir string

	mu     sync.Mutex
	memory uint64 // left
	disk   uint64 // left, in percent
	events []string
}

// machine is the Stats of a bench: real figures of pods, made-up ones of the
// node.
type machine struct {
	*stats.Provider
	b *bench
}

func (m machine) Node(context.Context) *statsapi.NodeStats {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	fs := &statsapi.FsStats{AvailableBytes: ptr.To(m.b.disk << 20), CapacityBytes: ptr.To[uint64](100 << 20)}
	return &statsapi.NodeStats{
		Memory: &statsapi.MemoryStats{AvailableBytes: ptr.To(m.b.memory), WorkingSetBytes: ptr.To(uint64(1<<30) - m.b.memory)},
		Fs:     fs, Runtime: &statsapi.RuntimeStats{ImageFs: fs},
	}
}

func newBench(t *testing.T, clk clock.WithTicker, set func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), memory: 1 << 30, disk: 50, rt: fakecri.New(clock.RealClock{})}
	b.rt.FsInfo = &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: b.dir}}}}
	b.rt.ContainerUsage = func() []*runtimeapi.ContainerStats { return nil }
	silent := slog.New(slog.DiscardHandler)
	e, err := engine.New(engine.Config{
		CRI: b.rt, Dir: filepath.Join(b.dir, "pods"), LogDir: filepath.Join(b.dir, "logs"), Logger: silent,
		Admit: func(pod *v1.Pod) (string, string) { return b.Admit(pod) },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.e = e
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); b.rt.Close() })
	figures := stats.New(stats.Config{CRI: b.rt, PodsDir: filepath.Join(b.dir, "pods"), LogDir: filepath.Join(b.dir, "logs"), Pods: e.Pods, Volumes: e.Usages, Log: silent})
	thresholds, err := eviction.Parse(map[string]string{"memory.available": "100Mi", "nodefs.available": "10%"}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		CRI: b.rt, Engine: e, Stats: machine{figures, b}, Clock: clk, Log: silent, Images: imagegc.Default,
		Eviction: eviction.Policy{Thresholds: thresholds, Transition: eviction.DefaultTransition},
		Record: func(kind, reason, message string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, fmt.Sprintf("%s %s: %s", kind, reason, message))
		},
		Pressure: filepath.Join(b.dir, "none"),
	}
	if set != nil {
		set(&cfg)
	}
	if b.Keeper, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) left(memory, disk uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.memory, b.disk = memory, disk
}

func (b *bench) has(event string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.events, func(e string) bool { return strings.Contains(e, event) })
}

func (b *bench) run(name string, set func(*v1.Pod)) *v1.Pod {
	b.t.Helper()
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)}}
	pod.Spec.Containers = []v1.Container{{Name: "app", Image: "app:1", ImagePullPolicy: v1.PullIfNotPresent}}
	pod.Spec.RestartPolicy, pod.Spec.TerminationGracePeriodSeconds = v1.RestartPolicyAlways, ptr.To[int64](30)
	pod.Spec.SecurityContext, pod.Spec.EnableServiceLinks = &v1.PodSecurityContext{}, ptr.To(true)
	if set != nil {
		set(pod)
	}
	if err := b.e.Apply(pod, engine.FromAPI()); err != nil {
		b.t.Fatal(err)
	}
	return pod
}

func (b *bench) await(what string, pod *v1.Pod, phase v1.PodPhase) *v1.Pod {
	b.t.Helper()
	for range 4000 {
		if got, ok := b.e.Get(pod.UID); ok && got.Status.Phase == phase {
			return got
		}
		time.Sleep(5 * time.Millisecond)
	}
	got, _ := b.e.Get(pod.UID)
	b.t.Fatalf("waiting in vain for %s: %+v", what, got.Status)
	return nil
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration passes")
	}
	b := newBench(t, clock.RealClock{}, nil)
	cfg := b.cfg
	cfg.Images.Low = 99
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "higher than the high one") {
		t.Errorf("a low mark over the high one: %v", err)
	}
}

// TestMemoryPressure: a pod goes, the node says why, and takes in no pod that
// promises nothing until it has recovered for a while.
func TestMemoryPressure(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	pod := b.run("besteffort", nil)
	b.await("Running", pod, v1.PodRunning)
	safe := b.run("critical", func(p *v1.Pod) { p.Spec.Priority = ptr.To[int32](2000000000) })
	b.await("Running", safe, v1.PodRunning)
	if b.look(t.Context()) || len(b.Conditions()) != 0 {
		t.Errorf("with memory left: %v", b.Conditions())
	}
	b.left(50<<20, 50)
	if !b.look(t.Context()) {
		t.Error("nobody was evicted")
	}
	got := b.await("its eviction", pod, v1.PodFailed)
	if got.Status.Reason != "Evicted" || !strings.HasPrefix(got.Status.Message, "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ") {
		t.Errorf("%s: %s", got.Status.Reason, got.Status.Message)
	}
	if i := slices.IndexFunc(got.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == v1.DisruptionTarget }); i < 0 || got.Status.Conditions[i].Reason != v1.PodReasonTerminationByKubelet {
		t.Errorf("conditions %+v", got.Status.Conditions)
	}
	if !b.has("Warning EvictionThresholdMet: Attempting to reclaim memory") {
		t.Errorf("events %q", b.events)
	}
	<-b.Changed()
	if c := b.NodeConditions(); c[0].Status != v1.ConditionTrue || c[0].Reason != "KubeletHasInsufficientMemory" || c[1].Reason != "KubeletHasNoDiskPressure" || c[2].Status != v1.ConditionFalse {
		t.Errorf("conditions %+v", c)
	}
	if b.look(t.Context()) { // the critical one stays, come what may
		t.Error("another one was evicted")
	}
	refused := b.await("a refusal", b.run("late", nil), v1.PodFailed)
	if refused.Status.Reason != "Evicted" || refused.Status.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " || refused.Status.ContainerStatuses != nil {
		t.Errorf("%+v", refused.Status)
	}
	b.await("a pod that knows what it needs", b.run("burstable", func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Mi")}
	}), v1.PodRunning)
}

// TestDiskPressure: what nobody uses goes before pods.
func TestDiskPressure(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(c *Config) { c.Images.MinAge = 0 })
	b.rt.Scripts["app"] = []fakecri.Run{{ExitAfter: time.Millisecond}}
	job := b.run("job", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })
	told := b.await("Succeeded", job, v1.PodSucceeded).DeepCopy()
	if err := b.e.Apply(told, engine.FromAPI()); err != nil { // the API knows how it ended
		t.Fatal(err)
	}
	b.rt.Scripts["app"] = nil
	web := b.run("web", nil)
	b.await("Running", web, v1.PodRunning)
	b.rt.SetImage("unused:1", 1<<20, false)
	b.rt.SetImage("pause:1", 1<<20, true)
	b.left(1<<30, 5)
	if !b.look(t.Context()) {
		t.Error("there was nothing left to free but a pod, and it stayed")
	}
	b.await("its eviction", web, v1.PodFailed)
	if got := strings.Join(b.rt.Images(), " "); got != "app:1 pause:1" {
		t.Errorf("images left: %s", got)
	}
	if !slices.ContainsFunc(b.rt.Calls(), func(c string) bool { return strings.HasPrefix(c, "RemoveContainer app/0") }) {
		t.Error("the ended container is still there")
	}
	if got, _ := b.e.Get(job.UID); got.Status.Phase != v1.PodSucceeded || got.Status.ContainerStatuses[0].State.Terminated == nil {
		t.Errorf("the job's status was lost: %+v", got.Status)
	}
}

// TestFreedIsEnough: no pod goes when images were enough.
func TestFreedIsEnough(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(c *Config) { c.Images.MinAge = 0 })
	web := b.run("web", nil)
	b.await("Running", web, v1.PodRunning)
	b.rt.SetImage("unused:1", 1<<20, false)
	b.left(1<<30, 5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.cfg.Stats = &freed{machine: b.cfg.Stats.(machine)}
	if b.look(ctx) {
		t.Error("a pod was evicted although images were enough")
	}
	if got := strings.Join(b.rt.Images(), " "); got != "app:1" {
		t.Errorf("images left: %s", got)
	}
	if fmt.Sprint(b.Conditions()) != "[DiskPressure]" {
		t.Errorf("conditions %v", b.Conditions())
	}
}

// freed has room as soon as an image is gone.
type freed struct{ machine }

func (f *freed) Node(ctx context.Context) *statsapi.NodeStats {
	if len(f.b.rt.Images()) < 2 {
		f.b.left(1<<30, 50)
	}
	return f.machine.Node(ctx)
}

func TestEmptyDirLimit(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(c *Config) { c.Eviction.Thresholds = nil })
	pod := b.run("greedy", func(p *v1.Pod) {
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
		p.Spec.Volumes = []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("64Ki"))}}}}
	})
	b.await("Running", pod, v1.PodRunning)
	if b.look(t.Context()) {
		t.Error("evicted while it is empty")
	}
	file := filepath.Join(b.dir, "pods", string(pod.UID), "volumes/kubernetes.io~empty-dir/scratch/file")
	if err := os.WriteFile(file, make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	b.look(t.Context())
	got := b.await("its eviction", pod, v1.PodFailed)
	if want := `Usage of EmptyDir volume "scratch" exceeds the limit "64Ki". `; got.Status.Reason != "Evicted" || got.Status.Message != want {
		t.Errorf("%s: %q, want %q", got.Status.Reason, got.Status.Message, want)
	}
}

// TestStorageLimit: logs count, too.
func TestStorageLimit(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	pod := b.run("talks", func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("64Ki")}
	})
	b.await("Running", pod, v1.PodRunning)
	b.rt.ContainerUsage = func() []*runtimeapi.ContainerStats {
		return []*runtimeapi.ContainerStats{{Attributes: &runtimeapi.ContainerAttributes{
			Id: "x", Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, Labels: map[string]string{"io.kubernetes.pod.uid": string(pod.UID)},
		}}}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "logs/default_talks_uid-talks/app/0.log"), make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	b.look(t.Context())
	if got := b.await("its eviction", pod, v1.PodFailed); got.Status.Message != "Pod ephemeral local storage usage exceeds the total limit of containers 64Ki. " {
		t.Errorf("%q", got.Status.Message)
	}
}

func TestImages(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, nil)
	web := b.run("web", nil)
	b.await("Running", web, v1.PodRunning)
	b.rt.SetImage("big:1", 50<<20, false)
	b.rt.SetImage("small:1", 3<<20, false)
	b.rt.SetImage("pause:1", 90<<20, true)
	ctx := t.Context()
	b.left(1<<30, 10)
	if err := b.CollectImages(ctx); err == nil || !b.has("Warning FreeDiskSpaceFailed: Insufficient free disk space on the node's image filesystem (90% of 100.0 MiB used). Failed to free sufficient space by deleting unused images (freed 0 bytes).") {
		t.Errorf("young images: %v, events %q", err, b.events)
	}
	clk.Step(3 * time.Minute)
	if err := b.CollectImages(ctx); err != nil {
		t.Error(err)
	}
	if got := strings.Join(b.rt.Images(), " "); got != "app:1 pause:1 small:1" {
		t.Errorf("images left: %s", got)
	}
	b.left(1<<30, 90)
	clk.Step(3 * time.Minute)
	if err := b.CollectImages(ctx); err != nil || len(b.rt.Images()) != 3 {
		t.Errorf("with room: %v, %v", err, b.rt.Images())
	}
}

func TestOldImages(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, func(c *Config) { c.Images.MaxAge = time.Hour })
	b.rt.SetImage("old:1", 50<<20, false)
	if err := b.CollectImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	clk.Step(time.Hour + time.Second)
	if err := b.CollectImages(t.Context()); err != nil || len(b.rt.Images()) != 0 {
		t.Errorf("%v, %v", err, b.rt.Images())
	}
}

// TestReport: one failure may be a hiccup, the second in a row is an event.
func TestReport(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	for i, err := range []error{errors.New("no"), nil, errors.New("no"), errors.New("no again")} {
		b.report(err)
		if got := b.has("Warning ImageGCFailed: no again"); got != (i == 3) {
			t.Errorf("after %d: %q", i, b.events)
		}
	}
}

// TestRun: the keeper looks by itself, and ends with its context.
func TestRun(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	b := newBench(t, clk, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	b.left(50<<20, 50)
	for len(b.Conditions()) == 0 {
		clk.Step(time.Second)
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPressure: a kernel that tells of memory pressure takes the question, and
// the watch ends with its context.
func TestPressure(t *testing.T) {
	if _, err := os.Stat("/proc/pressure/memory"); err != nil {
		t.Skip("this kernel has no pressure stall information")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- watchPressure(ctx, "/proc/pressure/memory", make(chan struct{}, 1)) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := watchPressure(t.Context(), filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a file that isn't there can be watched")
	}
}
