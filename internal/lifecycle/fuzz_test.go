package lifecycle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// fuzzPods are the pods that chaos is let loose on.
var fuzzPods = []string{`
pod:
  containers: [{name: app, image: a}, {name: log, image: l}]
`, `
pod:
  restartPolicy: OnFailure
  initContainers: [{name: one, image: i}, {name: two, image: i}]
  containers: [{name: app, image: a}]
`, `
pod:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  initContainers:
  - {name: side, image: s, restartPolicy: Always, startupProbe: {periodSeconds: 1, exec: {command: [probe]}}}
  - {name: one, image: i}
  containers:
  - {name: app, image: a, lifecycle: {preStop: {sleep: {seconds: 2}}}, livenessProbe: {periodSeconds: 2, exec: {command: [probe]}}}
`, `
pod:
  restartPolicy: Never
  initContainers: [{name: one, image: i}]
  containers:
  - {name: app, image: a, restartPolicy: OnFailure}
  - name: log
    image: l
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [7]}}]
`}

// chaos is what may happen; %s is a container.
var chaos = []string{
	"exit app 0", "exit app 1", "exit log 7", "exit side 1", "exit one 1", "exit one 0", "exit two 0",
	"sandbox dies", "lose app", "lose one", "unknown app", "unknown side", "restart engine",
	"image app b", "ephemeral debug app", "delete 3", "delete 60", "delete 0", "pulled a",
	"evict Evicted no room",
	"shutdown",
	"prune",
}

// FuzzStory lets anything happen at any time. Whatever it is, no container may
// run twice at a time, nothing may start out of turn or in a pod that ends, no
// pod may come back to life, and a pod that is deleted must be gone in the
// end.
func FuzzStory(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3})
	f.Add([]byte{2, 10, 7, 20, 15, 30, 1})
	f.Add([]byte{3, 40, 2, 40, 7, 40, 12, 40, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 || len(data) > 40 {
			return
		}
		w, err := parseScript("quiet conditions" + fuzzPods[int(data[0])%len(fuzzPods)])
		if err != nil {
			t.Fatal(err)
		}
		w.behaviour["one"] = behaviour{runs: []run{{ends: true, after: time.Second}}}
		w.behaviour["two"] = behaviour{runs: []run{{ends: true, after: time.Second}}}
		w.behaviour["app"] = behaviour{stopAfter: time.Second, preStop: 2 * time.Second}
		at := time.Duration(0)
		named := specs(w.pod)
		for i := 1; i+1 < len(data); i += 2 {
			at += time.Duration(data[i]) * 37 * time.Millisecond
			what := chaos[int(data[i+1])%len(chaos)]
			if words := strings.Fields(what); len(words) > 1 && words[0] != "delete" && words[0] != "evict" && words[0] != "pulled" &&
				words[0] != "ephemeral" && words[0] != "sandbox" && words[0] != "restart" && named[words[1]] == nil {
				continue
			}
			w.at = append(w.at, happening{at, what})
		}
		w.at = append(w.at, happening{at + 10*time.Minute, "delete 5"})
		w.until = at + time.Hour
		w.watch = newWatch(t, w)
		w.play()
		if !w.gone {
			t.Errorf("the pod is not gone:\n%s", w.out.String())
		}
	})
}

// watch sees that rules are kept.
type watch struct {
	t        *testing.T
	w        *world
	starting map[string]bool
	phase    v1.PodPhase
	restarts map[string]int32
}

func newWatch(t *testing.T, w *world) *watch {
	return &watch{t: t, w: w, starting: map[string]bool{}, restarts: map[string]int32{}}
}

func (k *watch) fail(format string, args ...any) {
	k.t.Errorf("at %s: %s\n%s", k.w.now, fmt.Sprintf(format, args...), k.w.out.String())
}

func (k *watch) action(a Action) {
	if a.Verb != Start {
		return
	}
	if k.w.pod.DeletionTimestamp != nil {
		k.fail("%s is started although the pod is deleted", a.Container)
	}
	if k.starting[a.Container] {
		k.fail("%s is started twice", a.Container)
	}
	k.starting[a.Container] = true
	for _, c := range k.w.view.Containers {
		if c.Name == a.Container && runs(c) {
			k.fail("%s is started beside %s", a.Container, c.ID)
		}
	}
	if sb := k.w.view.Sandboxes; len(sb) == 0 || sb[0].ID != a.SandboxID {
		k.fail("%s is started in sandbox %s", a.Container, a.SandboxID)
	}
	for i := range k.w.pod.Spec.Containers {
		if k.w.pod.Spec.Containers[i].Name == a.Container {
			k.initsRunning(a.Container)
		}
	}
}

// initsRunning fails if an ordinary init container runs while an app container
// is started.
func (k *watch) initsRunning(app string) {
	for i := range k.w.pod.Spec.InitContainers {
		init := &k.w.pod.Spec.InitContainers[i]
		for _, c := range k.w.view.Containers {
			if c.Name == init.Name && runs(c) && !isSidecar(init) {
				k.fail("%s is started while init container %s runs", app, c.ID)
			}
		}
	}
}

func (k *watch) started(name string) { delete(k.starting, name) }

func (k *watch) status(st *v1.PodStatus) {
	if ended(k.phase) && st.Phase != k.phase {
		k.fail("phase %s after %s", st.Phase, k.phase)
	}
	k.phase = st.Phase
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
		for _, c := range list {
			if c.RestartCount < k.restarts[c.Name] {
				k.fail("restart count of %s falls from %d to %d", c.Name, k.restarts[c.Name], c.RestartCount)
			}
			k.restarts[c.Name] = c.RestartCount
			n := 0
			for _, set := range []bool{c.State.Waiting != nil, c.State.Running != nil, c.State.Terminated != nil} {
				if set {
					n++
				}
			}
			if n != 1 {
				k.fail("%s has %d states", c.Name, n)
			}
		}
	}
}
