package play

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/progress"
	"unipod.dev/unipod/internal/timeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeWorld lets a test decide what becomes of pods.
type fakeWorld struct {
	events  chan Event
	create  func() error
	deleted func(killed bool) bool // whether the pods have gone
	kill    chan struct{}
	pods    []*v1.Pod

	mu    sync.Mutex
	calls []string
}

func (f *fakeWorld) note(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
}

func (f *fakeWorld) Create(context.Context) error {
	f.note("create")
	if f.create == nil {
		return nil
	}
	return f.create()
}

func (f *fakeWorld) Delete(context.Context) error {
	f.note("delete")
	if !f.deleted(false) {
		<-f.kill
		f.note("kill")
		f.deleted(true)
	}
	for _, p := range f.pods {
		f.events <- Event{Type: PodRemoved, Of: key("Pod", p), Pod: p}
	}
	return nil
}

func (f *fakeWorld) Kill() { close(f.kill) }

func (f *fakeWorld) Watch(context.Context) <-chan Event { return f.events }

// scene is a play in a test: its world, screens and logs.
type scene struct {
	*fakeWorld
	t        *testing.T
	cfg      Config
	out, err string
}

func newStage(t *testing.T, pods ...*v1.Pod) *scene {
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	s := &scene{t: t, out: filepath.Join(dir, "out"), err: filepath.Join(dir, "err"), fakeWorld: &fakeWorld{
		events: make(chan Event, 100), pods: pods, kill: make(chan struct{}), deleted: func(bool) bool { return true },
	}}
	s.cfg = Config{World: s.fakeWorld, Pods: pods, LogDir: filepath.Join(dir, "logs"), OwnLogs: true, Screen: progress.NewScreen(open("out"), open("err"), false)}
	for _, p := range pods {
		s.cfg.Runners = append(s.cfg.Runners, Runner{Key: key("Pod", p), Pod: true})
	}
	return s
}

func (s *scene) run() (code int, out, words string, err error) {
	s.t.Helper()
	code, err = Run(s.t.Context(), s.cfg)
	if left, _ := os.ReadDir(s.cfg.LogDir); len(left) > 0 {
		s.t.Errorf("%d log directories are left", len(left))
	}
	read := func(path string) string {
		b, rerr := os.ReadFile(path)
		if rerr != nil {
			s.t.Fatal(rerr)
		}
		return string(b)
	}
	return code, read(s.out), read(s.err), err
}

// log writes what a container says.
func (s *scene) log(pod *v1.Pod, container, text string) {
	s.t.Helper()
	dir := filepath.Join(s.cfg.LogDir, fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID), container)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "0.log"), []byte("2026-11-23T15:00:00Z stdout F "+text+"\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) status(pod *v1.Pod, phase v1.PodPhase, states ...v1.ContainerStatus) {
	pod = pod.DeepCopy()
	pod.Status.Phase, pod.Status.ContainerStatuses = phase, states
	s.events <- Event{Type: PodChanged, Of: key("Pod", pod), Pod: pod}
}

func (s *scene) record(pod *v1.Pod, kind, reason, message, container string) {
	s.events <- Event{Type: PodRecorded, Pod: pod, Record: &timeline.Record{Type: kind, Reason: reason, Message: message, Container: container}}
}

func pod(name string, containers ...string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: c})
	}
	return p
}

func ended(name string, code int32, second int) v1.ContainerStatus {
	t := &v1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Unix(int64(second), 0), ContainerID: "id-" + name, Reason: "Completed"}
	if code != 0 {
		t.Reason = "Error"
	}
	return v1.ContainerStatus{Name: name, State: v1.ContainerState{Terminated: t}}
}

func waiting(name, reason string) v1.ContainerStatus {
	return v1.ContainerStatus{Name: name, State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}}
}

func TestSucceeds(t *testing.T) {
	a, b := pod("a", "main", "helper"), pod("b", "x")
	s := newStage(t, a, b)
	var lives []timeline.Timeline
	s.cfg.Finished = func(all []timeline.Timeline) { lives = all }
	s.create = func() error {
		s.log(a, "main", "hello")
		s.record(a, "Normal", "Pulled", "Container image \"i\" already present on machine", "main")
		s.record(a, "Normal", "Created", "Created container: main", "main")
		s.record(a, "Normal", "Started", "Started container main", "main")
		s.status(a, v1.PodRunning)
		s.status(a, v1.PodSucceeded, ended("main", 0, 1), ended("helper", 0, 2))
		s.status(b, v1.PodSucceeded, ended("x", 0, 1))
		return nil
	}
	code, out, words, err := s.run()
	if code != 0 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	if want := "a/main   | hello\n"; out != want {
		t.Errorf("out %q, want %q", out, want)
	}
	want := `a/main   · Container image "i" already present on machine
a/main   · Started container main
a        · Running
a/main   · exited with code 0
a/helper · exited with code 0
a        · Succeeded
b/x      · exited with code 0
b        · Succeeded
`
	if words != want {
		t.Errorf("words:\n%s\nwant:\n%s", words, want)
	}
	if got := strings.Join(s.calls, "; "); got != "create; delete" {
		t.Errorf("calls: %s", got)
	}
	if len(lives) != 2 || lives[0].Name != "a" || lives[0].Phase != v1.PodSucceeded || len(lives[0].Containers) != 2 || lives[1].Name != "b" {
		t.Errorf("timelines: %+v", lives)
	}
}

func TestFirstFailureIsTheCode(t *testing.T) {
	a := pod("a", "late", "early")
	s := newStage(t, a)
	s.create = func() error {
		s.status(a, v1.PodFailed, ended("late", 4, 20), ended("early", 3, 10))
		return nil
	}
	if code, _, words, err := s.run(); code != 3 || err != nil || !strings.Contains(words, "a/early · exited with code 3\n") {
		t.Errorf("code %d, %v, words:\n%s", code, err, words)
	}
}

func TestGivesUp(t *testing.T) {
	for _, tc := range []struct {
		name string
		tell func(s *scene, p *v1.Pod)
		want string
	}{
		{"image", func(s *scene, p *v1.Pod) { s.status(p, v1.PodPending, waiting("c", "ErrImagePull")) },
			"Giving up: container c of pod a can't start (ErrImagePull); --retry keeps trying, as kubelet does\n"},
		{"sandbox", func(s *scene, p *v1.Pod) {
			s.record(p, "Warning", "FailedMount", `Unable to attach or mount volumes: configmap "kube-root-ca.crt" not found`, "")
			s.record(p, "Warning", "FailedCreatePodSandBox", "host port 80 is in use", "")
		},
			"a   · FailedCreatePodSandBox: host port 80 is in use\nGiving up: pod a can't start (FailedCreatePodSandBox); --retry keeps trying, as kubelet does\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod("a", "c")
			s := newStage(t, p)
			s.create = func() error { tc.tell(s, p); return nil }
			code, _, words, err := s.run()
			if code != 1 || err != nil || !strings.HasSuffix(words, tc.want) {
				t.Errorf("code %d, %v, words:\n%s", code, err, words)
			}
		})
	}
}

// What ran before is restarted as Kubernetes does, and --retry always.
func TestDoesNotGiveUp(t *testing.T) {
	p := pod("a", "c")
	ran := waiting("c", "CreateContainerError")
	ran.RestartCount = 1
	for _, tc := range []struct {
		retry bool
		state v1.ContainerStatus
	}{{false, ran}, {false, waiting("c", "ContainerCreating")}, {false, waiting("c", "CrashLoopBackOff")}, {true, waiting("c", "ErrImagePull")}} {
		tally := newTally([]Runner{{Key: "Pod default/a", Pod: true}}, tc.retry)
		seen := p.DeepCopy()
		seen.Status.ContainerStatuses = []v1.ContainerStatus{tc.state}
		tally.status("Pod default/a", seen)
		tally.judge(seen)
		if why, over := tally.over(); over {
			t.Errorf("%v: over: %s", tc, why)
		}
	}
}

func TestInterrupt(t *testing.T) {
	p := pod("a", "c")
	s := newStage(t, p)
	signals := make(chan os.Signal, 2)
	s.cfg.Signals = signals
	s.create = func() error {
		s.status(p, v1.PodRunning)
		signals <- syscall.SIGINT
		return nil
	}
	s.deleted = func(killed bool) bool {
		if !killed { // it won't listen
			signals <- syscall.SIGINT
		}
		return killed
	}
	code, _, words, err := s.run()
	if code != 130 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	if got := strings.Join(s.calls, "; "); got != "create; delete; kill" {
		t.Errorf("calls: %s", got)
	}
	if !strings.Contains(words, "Stopping 1 pod, press Ctrl-C again to kill\n") || !strings.Contains(words, "Killing 1 pod\n") {
		t.Errorf("words:\n%s", words)
	}
}

// What the API refuses takes the rest with it.
func TestCreateFails(t *testing.T) {
	s := newStage(t, pod("a", "c"), pod("b", "c"))
	refused := errors.New("refused")
	s.create = func() error { return refused }
	code, _, _, err := s.run()
	if code != 1 || !errors.Is(err, refused) || strings.Join(s.calls, "; ") != "create; delete" {
		t.Errorf("code %d, %v, calls %q", code, err, s.calls)
	}
}

// A Job counts as its pods: when it has failed, and not for what it tried
// again. What doesn't end isn't waited for the end of.
func TestJob(t *testing.T) {
	first, second := pod("j-1", "c"), pod("j-2", "c")
	for _, failed := range []bool{false, true} {
		s := newStage(t)
		s.pods = []*v1.Pod{first, second}
		s.cfg.Runners = []Runner{{Key: "Job default/j", Job: true}}
		s.create = func() error {
			for i, p := range s.pods {
				q := p.DeepCopy()
				q.Status.Phase, q.Status.ContainerStatuses = v1.PodFailed, []v1.ContainerStatus{ended("c", int32(4+i), i)}
				if i == 1 && !failed {
					q.Status.Phase, q.Status.ContainerStatuses = v1.PodSucceeded, []v1.ContainerStatus{ended("c", 0, i)}
				}
				s.events <- Event{Type: PodChanged, Of: "Job default/j", Pod: q}
			}
			s.events <- Event{Type: Recorded, Of: "Job default/j", Record: &timeline.Record{Type: "Warning", Reason: "BackoffLimitExceeded", Message: "it is enough"}}
			s.events <- Event{Type: JobEnded, Of: "Job default/j", Failed: failed}
			return nil
		}
		want := 0
		if failed {
			want = 4
		}
		code, _, words, err := s.run()
		if code != want || err != nil || !strings.Contains(words, "Job default/j · BackoffLimitExceeded: it is enough\n") || !strings.Contains(words, "j-1/c · exited with code 4") {
			t.Errorf("failed %v: code %d, %v, words:\n%s", failed, code, err, words)
		}
	}
	endless := newTally([]Runner{{Key: "Pod default/j-1", Pod: true}, {Key: "Deployment default/d"}}, false)
	done := first.DeepCopy()
	done.Status.Phase = v1.PodSucceeded
	endless.status("Pod default/j-1", done)
	if _, over := endless.over(); over {
		t.Error("a Deployment has ended")
	}
}

func TestQuiet(t *testing.T) {
	p := pod("a", "c")
	s := newStage(t, p)
	s.cfg.Quiet = true
	s.create = func() error {
		s.log(p, "c", "only this")
		s.status(p, v1.PodSucceeded, ended("c", 0, 1))
		return nil
	}
	if _, out, words, _ := s.run(); out != "a/c | only this\n" || words != "" {
		t.Errorf("out %q, words %q", out, words)
	}
}

func TestOutcome(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	p := pod("a", "main")
	p.Spec.InitContainers = []v1.Container{{Name: "init"}, {Name: "sidecar", RestartPolicy: &always}}
	for _, tc := range []struct {
		name  string
		phase v1.PodPhase
		why   string
		inits []v1.ContainerStatus
		mains []v1.ContainerStatus
		code  int
		final bool
	}{
		{"running", v1.PodRunning, "", nil, nil, 0, false},
		{"succeeded, sidecar killed", v1.PodSucceeded, "", []v1.ContainerStatus{ended("sidecar", 137, 9)}, []v1.ContainerStatus{ended("main", 0, 1)}, 0, true},
		{"failed, sidecar killed before", v1.PodFailed, "", []v1.ContainerStatus{ended("sidecar", 137, 0)}, []v1.ContainerStatus{ended("main", 5, 1)}, 5, true},
		{"init failed", v1.PodFailed, "", []v1.ContainerStatus{ended("init", 7, 1)}, nil, 7, true},
		{"deadline", v1.PodFailed, "DeadlineExceeded", nil, []v1.ContainerStatus{ended("main", 137, 1)}, 1, true},
		{"failed, nobody knows why", v1.PodFailed, "", nil, nil, 1, true},
	} {
		q := p.DeepCopy()
		q.Status.Phase, q.Status.Reason, q.Status.InitContainerStatuses, q.Status.ContainerStatuses = tc.phase, tc.why, tc.inits, tc.mains
		if code, final := Outcome(q); code != tc.code || final != tc.final {
			t.Errorf("%s: %d, %t", tc.name, code, final)
		}
	}
}

func TestSameNames(t *testing.T) {
	a, b := pod("web", "c"), pod("web", "c")
	b.Namespace, b.UID = "other", "uid-other"
	talk := newTalk([]*v1.Pod{a, b}, true)
	talk.meet(a)
	talk.meet(b)
	if got := talk.prefix(b.UID, "c", "|"); got != "\x1b[33mother/web/c   | \x1b[0m" {
		t.Errorf("%q", got)
	}
	if got := talk.prefix(a.UID, "c", "|"); got != "\x1b[36mdefault/web/c | \x1b[0m" {
		t.Errorf("%q", got)
	}
}

// The same sentence isn't said twice in a minute.
func TestRepeats(t *testing.T) {
	p := pod("a", "c")
	talk := newTalk(nil, false)
	talk.meet(p)
	r := &timeline.Record{Type: "Warning", Reason: "Unhealthy", Message: "Readiness probe failed", Container: "c"}
	t0 := time.Unix(0, 0)
	for _, tc := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {10 * time.Second, 0}, {59 * time.Second, 0}, {61 * time.Second, 1}} {
		if got := talk.record(p, r, t0.Add(tc.after)); len(got) != tc.want {
			t.Errorf("after %s: %q", tc.after, got)
		}
	}
}
