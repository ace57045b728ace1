package scenario

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/node"
)

// lives is how many pods live and end in [TestSoak]; `make soak` asks for more.
func lives(t *testing.T) int {
	text := os.Getenv("UNIPOD_SOAK_LIVES")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSoak: after any number of pods' lives a node holds what it held before:
// goroutines, descriptors, mounts, control groups, links, records, files.
func TestSoak(t *testing.T) {
	if os.Getenv("UNIPOD_SCENARIO_RUNTIME") != "" {
		t.Skip("another runtime's leaks are its own")
	}
	m := newMachine(t)
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	s := &soak{t: t, m: m, groups: "/unipod-soak-" + strconv.Itoa(os.Getpid())}
	n, err := node.Open(t.Context(), node.Config{Root: m.Root, Run: m.Run, CgroupParent: s.groups, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	if _, err := n.Images().LoadPath(t.Context(), writeImage(t, m.Dir), "", nil); err != nil {
		t.Fatal(err)
	}
	s.Engine, err = engine.New(engine.Config{
		CRI: n.CRI(), Dir: filepath.Join(m.Root, "pods"), LogDir: filepath.Join(m.Root, "logs"), CgroupRoot: s.groups, Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s.events = s.Watch(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.removeGroups()
	}()

	const warm = 20 // what is made once is made by now
	s.live(warm)
	s.settle(nil)
	before := s.measure()
	total := lives(t)
	began := time.Now()
	s.live(total)
	took := time.Since(began)
	s.settle(before)
	t.Logf("%d lives in %s, %.1f/s: %v, then %v", total, took.Round(time.Millisecond), float64(total)/took.Seconds(), before, s.measure())
}

type soak struct {
	*engine.Engine
	t      *testing.T
	m      *machine
	groups string
	events <-chan engine.Event
	born   int
}

// pod has of everything that leaves something behind: an init container, a
// restart, a hook, a probe, volumes on disk and in memory.
func (s *soak) pod() *v1.Pod {
	s.born++
	name := fmt.Sprintf("life-%d", s.born)
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("soak-" + name)}}
	pod.Spec.RestartPolicy = v1.RestartPolicyOnFailure
	pod.Spec.Volumes = []v1.Volume{
		{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		{Name: "info", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{{
			Path: "name", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}}},
	}
	shell := func(name, script string) v1.Container {
		return v1.Container{Name: name, Image: imageName, Command: []string{"sh", "-c", script}, VolumeMounts: []v1.VolumeMount{
			{Name: "disk", MountPath: "/disk"}, {Name: "memory", MountPath: "/memory"}, {Name: "info", MountPath: "/info", ReadOnly: true}}}
	}
	app := shell("app", "[ -e /memory/again ] || { touch /memory/again; exit 1; }; while [ ! -e /disk/hook ]; do sleep 0.05; done; cat /info/name")
	app.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"touch", "/disk/hook"}}}}
	app.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}}, TimeoutSeconds: 10}
	side := shell("side", "trap 'exit 0' TERM; sleep 1000 & wait $!")
	side.RestartPolicy = ptr.To(v1.ContainerRestartPolicyAlways)
	pod.Spec.InitContainers = []v1.Container{shell("init", "echo > /disk/init"), side}
	pod.Spec.Containers = []v1.Container{app}
	corev1.SetObjectDefaults_Pod(pod)
	return pod
}

// live lets pods live, a few at a time, from birth to removal.
func (s *soak) live(count int) {
	s.t.Helper()
	const together = 8
	running := map[types.UID]bool{}
	begin := func() {
		p := s.pod()
		running[p.UID] = true
		if err := s.Apply(p, engine.FromAPI()); err != nil {
			s.t.Fatal(err)
		}
	}
	last := s.born + count
	for s.born < last && len(running) < together {
		begin()
	}
	ended := map[types.UID]bool{}
	for len(running) > 0 {
		ev, ok := <-s.events
		if !ok {
			s.t.Fatal("the engine has stopped")
		}
		uid := ev.Pod.UID
		switch {
		case ev.Type == engine.Removed:
			delete(running, uid)
			if s.born < last {
				begin()
			}
		case ev.Pod.Status.Phase == v1.PodFailed:
			s.t.Fatalf("%s failed: %+v", ev.Pod.Name, ev.Pod.Status)
		case ev.Pod.Status.Phase == v1.PodSucceeded && !ended[uid]:
			ended[uid] = true
			s.Delete(uid, nil)
		}
	}
}

// measure counts what a life could leave behind.
func (s *soak) measure() map[string]int {
	s.t.Helper()
	counts := map[string]int{"goroutines": runtime.NumGoroutine()}
	list := func(what, dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			s.t.Fatal(err)
		}
		counts[what] = len(entries)
	}
	list("descriptors", "/proc/self/fd")
	list("sandboxes", filepath.Join(s.m.Run, "sandboxes"))
	list("containers", filepath.Join(s.m.Run, "containers"))
	list("layers", filepath.Join(s.m.Root, "containers"))
	list("pods", filepath.Join(s.m.Root, "pods"))
	list("logs", filepath.Join(s.m.Root, "logs"))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	counts["mounts"] = strings.Count(string(mounts), s.m.Dir)
	links, err := netlink.LinkList()
	if err != nil {
		s.t.Fatal(err)
	}
	counts["links"] = len(links)
	for _, dir := range s.groupDirs() {
		if strings.Contains(dir, "soak-life") {
			counts["cgroups"]++
		}
	}
	return counts
}

// groupDirs are the control groups of this test, deepest first.
func (s *soak) groupDirs() []string {
	var all []string
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + s.groups)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, root := range append(roots, "/sys/fs/cgroup"+s.groups) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() { // it may go while we look
				all = append(all, path)
			}
			return nil
		})
	}
	slices.Reverse(all)
	return all
}

// removeGroups removes the parents, which the engine keeps for the next pod.
func (s *soak) removeGroups() {
	for _, dir := range s.groupDirs() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			s.t.Error(err)
		}
	}
}

// settle waits until nothing is left of the pods but what there was before:
// links and mounts go behind the reply. Without a before it waits for quiet.
func (s *soak) settle(before map[string]int) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for last := s.measure(); ; {
		time.Sleep(500 * time.Millisecond)
		now := s.measure()
		over := maps.Equal(now, last) && before == nil
		if before != nil {
			over = true
			for what, count := range now {
				over = over && count <= before[what]
			}
		}
		if over {
			return
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			s.t.Fatalf("something grows: %v, before %v\n%s", now, before, stacks)
		}
		last = now
	}
}
