package engine

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri/fakecri"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is an engine on a fake runtime, running until the test ends.
type bench struct {
	*Engine
	t  *testing.T
	rt *fakecri.Runtime

	mu      sync.Mutex
	records []string
	removed map[types.UID]bool
	changed chan struct{}
}

func newBench(t *testing.T, clk clock.Clock, set func(*Config, *fakecri.Runtime)) *bench {
	t.Helper()
	rt := fakecri.New(clk.(clock.WithDelayedExecution))
	dir := t.TempDir()
	cfg := Config{
		CRI: rt, Dir: filepath.Join(dir, "pods"), LogDir: filepath.Join(dir, "logs"), NodeName: "node",
		Clock: clk.(clock.WithTicker), Logger: slog.New(slog.DiscardHandler),
	}
	cfg.Node.HostIPs = []string{"192.0.2.1"}
	if set != nil {
		set(&cfg, rt)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Engine: e, t: t, rt: rt, removed: map[types.UID]bool{}, changed: make(chan struct{}, 1)}
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
	go func() {
		defer wg.Done()
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); wg.Wait(); rt.Close() })
	return b
}

func (b *bench) note(ev Event) {
	b.mu.Lock()
	switch ev.Type {
	case Recorded:
		where := ""
		if ev.Record.Container != "" {
			where = ev.Record.FieldPath + " "
		}
		b.records = append(b.records, fmt.Sprintf("%s%s: %s", where, ev.Record.Reason, ev.Record.Message))
	case Removed:
		b.removed[ev.Pod.UID] = true
	}
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// await waits until cond holds; what is awaited comes by events, so this is no
// timing assertion.
func (b *bench) await(what string, cond func() bool) {
	b.t.Helper()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-b.changed:
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			b.mu.Lock()
			defer b.mu.Unlock()
			b.t.Fatalf("waiting in vain for %s\nrecords:\n  %s\npods: %s", what, strings.Join(b.records, "\n  "), b.dump())
		}
	}
}

func (b *bench) dump() string {
	var s strings.Builder
	for _, p := range b.List() {
		fmt.Fprintf(&s, "\n%s %s", p.Name, p.Status.Phase)
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			fmt.Fprintf(&s, "\n  %s ready=%v %+v", c.Name, c.Ready, c.State)
		}
	}
	return s.String()
}

func (b *bench) phase(uid types.UID) v1.PodPhase {
	p, ok := b.Get(uid)
	if !ok {
		return "gone"
	}
	return p.Status.Phase
}

func (b *bench) apply(pod *v1.Pod) {
	b.t.Helper()
	if err := b.Apply(pod, FromAPI()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) has(record string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.records {
		if strings.Contains(r, record) {
			return true
		}
	}
	return false
}

func container(name string) v1.Container {
	return v1.Container{
		Name: name, Image: "registry.test/" + name + ":1", ImagePullPolicy: v1.PullIfNotPresent,
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: v1.TerminationMessageReadFile,
	}
}

func newPod(name string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Generation: 1},
		Spec: v1.PodSpec{
			Containers: containers, RestartPolicy: v1.RestartPolicyAlways, DNSPolicy: v1.DNSClusterFirst,
			TerminationGracePeriodSeconds: ptr.To[int64](30), EnableServiceLinks: ptr.To(true),
			SecurityContext: &v1.PodSecurityContext{},
		},
	}
}

func TestApplyRefuses(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	for _, uid := range []types.UID{"", ".", "..", "../x", "a/b", "a\x00b", "a_b"} {
		pod := newPod("web", container("app"))
		pod.UID = uid
		if err := b.Apply(pod, FromAPI()); !errdefs.IsInvalidArgument(err) {
			t.Errorf("uid %q: %v", uid, err)
		}
	}
	if _, err := New(Config{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an empty configuration: %v", err)
	}
}

func TestCgroupParent(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	pod := newPod("web", container("app"))
	pod.UID = "1a-2b"
	for _, c := range []struct {
		own, systemd bool
		want         string
	}{
		{true, false, "/unipod/besteffort/pod1a-2b"},
		{true, true, "unipod-besteffort-pod1a_2b.slice"},
		{false, false, ""},
	} {
		e := &Engine{cfg: b.cfg, runtime: runtimeInfo{parents: c.own, systemd: c.systemd}}
		if got := e.cgroupParent(pod); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestPodRunsAndEnds(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	pod := newPod("web", container("app"), container("log"))
	init := container("setup")
	pod.Spec.InitContainers = []v1.Container{init}
	b.rt.Scripts["setup"] = []fakecri.Run{{ExitAfter: time.Millisecond}}
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	got, _ := b.Get(pod.UID)
	if got.Status.PodIP == "" || got.Status.HostIP != "192.0.2.1" || got.Spec.NodeName != "node" {
		t.Errorf("podIP %q, hostIP %q, nodeName %q", got.Status.PodIP, got.Status.HostIP, got.Spec.NodeName)
	}
	b.Delete(pod.UID, nil)
	b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
	if s, c := b.rt.Counts(); s != 0 || c != 0 {
		t.Errorf("left in the runtime: %d sandboxes, %d containers", s, c)
	}
	for _, want := range []string{
		`spec.initContainers{setup} Pulling: Pulling image "registry.test/setup:1"`,
		`spec.initContainers{setup} Created: Container created`,
		`spec.containers{app} Started: Container started`,
		`spec.containers{app} Killing: Stopping container app`,
	} {
		if !b.has(want) {
			t.Errorf("no record %q", want)
		}
	}
}
