package lifecycle

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var genesis = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a runtime and an engine in virtual time: it carries the machine's
// actions out as the script says and writes down what happens.
type world struct {
	script
	now    time.Duration
	pod    *v1.Pod
	state  State
	view   View
	queue  []appointment
	events []Event
	serial int
	out    strings.Builder
	marked time.Duration // the time last written
	shown  v1.PodStatus
	probes map[string]bool // running, "id kind"
	said   map[string]bool // outcome last written, "container kind"
	runs   map[string]int
	sboxes int
	gone   bool
	inputs []Input // to check purity
	states []State
	watch  *watch // of a fuzzed world
	epoch  int    // engines that have been
}

type appointment struct {
	at  time.Duration
	seq int
	do  func()
}

func (w *world) in(d time.Duration, do func()) {
	w.serial++
	w.queue = append(w.queue, appointment{w.now + d, w.serial, do})
}

func (w *world) time() time.Time { return genesis.Add(w.now) }

// say writes a line, with the time when it has moved on.
func (w *world) say(format string, args ...any) {
	stamp := "           "
	if w.marked != w.now || w.out.Len() == 0 {
		stamp = fmt.Sprintf("%-11s", w.now)
		w.marked = w.now
	}
	w.out.WriteString(strings.TrimRight(stamp+fmt.Sprintf(format, args...), " ") + "\n")
}

// play runs the world until the script's end, or until nothing can happen any
// more.
func (w *world) play() string {
	for _, e := range w.at {
		w.in(e.at, func() { w.happen(e.what) })
	}
	wake := time.Duration(-1)
	w.in(0, func() {})
	for steps := 0; !w.gone; steps++ {
		if steps > 20000 {
			w.say("!! the story does not end")
			break
		}
		next := time.Duration(-1)
		for _, a := range w.queue {
			if next < 0 || a.at < next {
				next = a.at
			}
		}
		if wake >= 0 && (next < 0 || wake < next) {
			next = wake
		}
		if next < 0 || w.until > 0 && next > w.until {
			break
		}
		w.now = max(next, w.now)
		w.meet()
		wake = w.step()
	}
	if w.gone {
		w.say("gone")
	}
	return w.out.String()
}

// meet keeps all appointments that are due.
func (w *world) meet() {
	for {
		i := -1
		for j, a := range w.queue {
			if a.at <= w.now && (i < 0 || a.seq < w.queue[i].seq) {
				i = j
			}
		}
		if i < 0 {
			return
		}
		a := w.queue[i]
		w.queue = slices.Delete(w.queue, i, i+1)
		a.do()
	}
}

func (w *world) step() time.Duration {
	view := w.view
	view.Sandboxes = slices.Clone(view.Sandboxes)
	view.Containers = slices.Clone(view.Containers)
	if w.watch != nil {
		for _, e := range w.events {
			if s, ok := e.(Started); ok {
				w.watch.started(s.Container)
			}
		}
	}
	in := Input{Now: w.time(), Pod: w.pod.DeepCopy(), View: view, Events: w.events, HostIPs: []string{"192.0.2.1"}}
	w.events = nil
	before := w.state
	state, out := Step(before, in)
	if w.watch == nil {
		w.inputs, w.states = append(w.inputs, in), append(w.states, before)
	}
	w.state = state
	for _, r := range out.Records {
		name := ""
		if r.Container != "" {
			name = r.Container + ": "
		}
		w.say("  * %s%s %s", name, r.Reason, r.Message)
	}
	w.tell(&out.Status)
	if w.watch != nil {
		w.watch.status(&out.Status)
	}
	for _, a := range out.Actions {
		if w.watch != nil {
			w.watch.action(a)
		}
		w.perform(a)
	}
	w.schedule(out.Probes)
	w.gone = out.Removed
	if out.WakeAt.IsZero() {
		return -1
	}
	return max(out.WakeAt.Sub(genesis), w.now+1)
}

// tell writes down what has changed in the status.
func (w *world) tell(st *v1.PodStatus) {
	old := w.shown
	w.shown = *st.DeepCopy()
	if old.Phase != st.Phase || old.Reason != st.Reason || old.Message != st.Message {
		w.say("  = pod %s%s", st.Phase, because(st.Reason, st.Message))
	}
	if old.PodIP != st.PodIP {
		w.say("  = ip %q", st.PodIP)
	}
	groups := func(s *v1.PodStatus) [][]v1.ContainerStatus {
		return [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses}
	}
	previous := map[string]string{}
	for _, list := range groups(&old) {
		for i := range list {
			previous[list[i].Name] = describeStatus(&list[i])
		}
	}
	for _, list := range groups(st) {
		for i := range list {
			if d := describeStatus(&list[i]); d != previous[list[i].Name] {
				w.say("  = %s %s", list[i].Name, d)
			}
		}
	}
	if slices.Contains(w.quiet, "conditions") {
		return
	}
	for _, c := range st.Conditions {
		o := findCondition(old.Conditions, c.Type)
		if o == nil || o.Status != c.Status || o.Reason != c.Reason || o.Message != c.Message {
			w.say("  = %s=%s%s", c.Type, c.Status, because(c.Reason, c.Message))
		}
	}
}

func because(reason, message string) string {
	switch {
	case reason == "" && message == "":
		return ""
	case message == "":
		return " " + reason
	}
	return fmt.Sprintf(" %s (%s)", reason, message)
}

func describeState(s v1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return fmt.Sprintf("terminated %d%s", s.Terminated.ExitCode, because(s.Terminated.Reason, s.Terminated.Message))
	case s.Waiting != nil:
		return "waiting" + because(s.Waiting.Reason, s.Waiting.Message)
	}
	return "nothing"
}

func describeStatus(c *v1.ContainerStatus) string {
	d := describeState(c.State)
	if c.State.Running != nil && (c.Started == nil || !*c.Started) {
		d += ", not started"
	}
	if c.Ready {
		d += ", ready"
	}
	if c.RestartCount > 0 {
		d += fmt.Sprintf(", restarts %d", c.RestartCount)
	}
	if c.LastTerminationState.Terminated != nil {
		d += ", last " + describeState(c.LastTerminationState)
	}
	return d
}

// perform carries an action out.
func (w *world) perform(a Action) {
	quiet := slices.Contains(w.quiet, "volumes")
	post := func(d time.Duration, ev Event) { w.in(d, w.ofThisEngine(func() { w.events = append(w.events, ev) })) }
	switch a.Verb {
	case PrepareVolumes:
		err := w.takeFailure("volumes")
		if !quiet {
			w.say("  > %s%s", a.Verb, fails(err))
		}
		post(time.Millisecond, VolumesPrepared{err})
	case TearDownVolumes:
		if !quiet {
			w.say("  > %s", a.Verb)
		}
		post(time.Millisecond, VolumesTornDown{})
	case CreateSandbox:
		err := w.takeFailure("sandbox")
		w.say("  > %s #%d%s", a.Verb, a.Attempt, fails(err))
		w.in(5*time.Millisecond, func() {
			if err == nil {
				w.sboxes++
				id := fmt.Sprintf("sb%d", w.sboxes)
				sb := Sandbox{ID: id, Attempt: a.Attempt, Ready: true, IPs: []string{fmt.Sprintf("10.88.0.%d", w.sboxes+1)}, CreatedAt: w.time(), HostNetwork: w.pod.Spec.HostNetwork}
				w.view.Sandboxes = slices.Insert(w.view.Sandboxes, 0, sb)
			}
			w.events = append(w.events, SandboxCreated{Err: err})
		})
	case StopSandbox:
		w.say("  > %s %s", a.Verb, a.ID)
		w.in(5*time.Millisecond, func() { w.stopSandbox(a.ID) })
		post(5*time.Millisecond, SandboxStopped{ID: a.ID})
	case RemoveSandbox:
		w.say("  > %s %s", a.Verb, a.ID)
		w.in(time.Millisecond, func() {
			w.view.Sandboxes = slices.DeleteFunc(w.view.Sandboxes, func(s Sandbox) bool { return s.ID == a.ID })
		})
		post(time.Millisecond, SandboxRemoved{ID: a.ID})
	case Start:
		w.start(a)
	case CancelStart:
		w.say("  > %s %s", a.Verb, a.Container)
	case PreStop:
		b := w.behaviour[a.Container]
		w.say("  > %s %s (%s at most)", a.Verb, a.Container, a.Grace)
		post(min(b.preStop, a.Grace), PreStopped{ID: a.ID})
	case Stop:
		w.say("  > %s %s within %s", a.Verb, a.ID, a.Grace)
		w.stop(a)
	case Remove:
		w.say("  > %s %s", a.Verb, a.ID)
		w.in(time.Millisecond, func() {
			w.view.Containers = slices.DeleteFunc(w.view.Containers, func(c Container) bool { return c.ID == a.ID })
		})
		post(time.Millisecond, ContainerRemoved{ID: a.ID})
	case Resize:
		w.say("  > %s %s limits cpu=%s memory=%s", a.Verb, a.ID, a.Resources.Limits.Cpu(), a.Resources.Limits.Memory())
		post(time.Millisecond, Resized{Container: a.Container, Resources: *a.Resources, Err: w.takeFailure("resize")})
	}
}

// ofThisEngine is do while the present engine lives: its successor hears
// nothing of what it had under way.
func (w *world) ofThisEngine(do func()) func() {
	epoch := w.epoch
	return func() {
		if epoch == w.epoch {
			do()
		}
	}
}

func fails(err error) string {
	if err == nil {
		return ""
	}
	return " (fails: " + err.Error() + ")"
}

// takeFailure is the next failure the script has for a thing.
func (w *world) takeFailure(what string) error {
	list := w.failures[what]
	if len(list) == 0 {
		return nil
	}
	w.failures[what] = list[1:]
	if list[0] == "" {
		return nil
	}
	return errors.New(list[0])
}

func (w *world) start(a Action) {
	err := w.takeFailure("start " + a.Container)
	w.say("  > %s %s #%d%s", a.Verb, a.Container, a.Attempt, fails(err))
	if err != nil {
		reason, message, _ := strings.Cut(err.Error(), ": ")
		f := &Failure{Reason: reason, Message: message, Pull: reason == ReasonErrImagePull}
		w.in(10*time.Millisecond, w.ofThisEngine(func() { w.events = append(w.events, Started{a.Container, f}) }))
		return
	}
	epoch := w.epoch
	w.in(10*time.Millisecond, func() {
		if epoch != w.epoch {
			w.halfStart(a)
			return
		}
		b := w.behaviour[a.Container]
		w.serial++
		id := fmt.Sprintf("%s.%d", a.Container, w.runs[a.Container])
		r := b.run(w.runs[a.Container])
		w.runs[a.Container]++
		w.view.Containers = slices.Insert(w.view.Containers, 0, Container{
			ID: id, Name: a.Container, SandboxID: a.SandboxID, State: Running, CreatedAt: w.time(), StartedAt: w.time(),
			Image: w.imageOf(a.Container), ImageRef: "sha256:1", RestartCount: int32(a.Attempt),
		})
		if r.ends {
			w.in(r.after, func() { w.exit(id, r.code, r.reason) })
		}
		if b.postStart == 0 && b.postStartError == "" {
			w.events = append(w.events, Started{Container: a.Container})
			return
		}
		w.in(b.postStart, func() {
			var f *Failure
			if b.postStartError != "" {
				f = &Failure{Reason: ReasonPostStartHookError, Message: b.postStartError, Kill: id}
			}
			w.events = append(w.events, Started{Container: a.Container, Failure: f})
		})
	})
}

// halfStart is a Start whose engine was killed: in a story, and every other time else, it had come
// as far as creating the container.
func (w *world) halfStart(a Action) {
	w.serial++
	if w.watch != nil && w.serial%2 == 0 {
		return
	}
	w.view.Containers = slices.Insert(w.view.Containers, 0, Container{
		ID: fmt.Sprintf("%s.%d", a.Container, w.runs[a.Container]), Name: a.Container, SandboxID: a.SandboxID,
		State: Created, CreatedAt: w.time(), RestartCount: int32(a.Attempt),
	})
	w.runs[a.Container]++
}

func (w *world) imageOf(name string) string { return specs(w.pod)[name].Image }

func (w *world) find(id string) *Container {
	i := slices.IndexFunc(w.view.Containers, func(c Container) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &w.view.Containers[i]
}

func (w *world) exit(id string, code int32, reason string) {
	c := w.find(id)
	if c == nil || !runs(*c) {
		return
	}
	if reason == "" {
		reason = "Error"
		if code == 0 {
			reason = "Completed"
		}
	}
	c.State, c.ExitCode, c.Reason, c.FinishedAt = Exited, code, reason, w.time()
	w.say("%s exits %d", id, code)
}

func (w *world) stop(a Action) {
	c := w.find(a.ID)
	if c == nil || !runs(*c) {
		w.in(0, func() { w.events = append(w.events, Stopped{ID: a.ID}) })
		return
	}
	b := w.behaviour[c.Name]
	after, code := b.stopAfter, b.stopCode
	if b.deaf || after > a.Grace || a.Grace == 0 {
		after, code = a.Grace, 137
	}
	w.in(after, func() {
		w.exit(a.ID, code, "")
		w.events = append(w.events, Stopped{ID: a.ID})
	})
}

func (w *world) stopSandbox(id string) {
	for i := range w.view.Containers {
		if c := &w.view.Containers[i]; c.SandboxID == id {
			w.exit(c.ID, 137, "")
		}
	}
	for i := range w.view.Sandboxes {
		if w.view.Sandboxes[i].ID == id {
			w.view.Sandboxes[i].Ready = false
		}
	}
}

// schedule makes the probes those wanted.
func (w *world) schedule(wanted []Probe) {
	keep := map[string]bool{}
	for _, p := range wanted {
		key := p.ID + " " + string(p.Kind)
		keep[key] = true
		if !w.probes[key] {
			w.probes[key] = true
			w.in(max(p.First.Sub(w.time()), 0), func() { w.probe(key, p) })
		}
	}
	for key := range w.probes {
		if !keep[key] {
			delete(w.probes, key)
		}
	}
}

func (w *world) probe(key string, p Probe) {
	if !w.probes[key] {
		return
	}
	name := p.Container + " " + strings.ToLower(string(p.Kind))
	ok := w.health[name].ok(w.now)
	if was, before := w.said[name]; !before || was != ok {
		w.said[name] = ok
		w.say("%s probe of %s: %s", strings.ToLower(string(p.Kind)), p.ID, map[bool]string{true: "success", false: "failure"}[ok])
	}
	w.events = append(w.events, Probed{ID: p.ID, Kind: p.Kind, Success: ok})
	period := probeSpec(specs(w.pod)[p.Container], p.Kind).PeriodSeconds
	w.in(time.Duration(period)*time.Second, func() { w.probe(key, p) })
}

// delete asks for the pod's end.
func (w *world) delete(grace int64) {
	t := metav1.NewTime(w.time().Add(time.Duration(grace) * time.Second))
	w.pod.DeletionTimestamp, w.pod.DeletionGracePeriodSeconds = &t, &grace
}

// check steps through the story again: the machine must not have touched what
// it was given, and must answer the same.
func (w *world) check(t *testing.T) {
	t.Helper()
	for i, in := range w.inputs {
		_, a := Step(w.states[i], in)
		_, b := Step(w.states[i], in)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("step %d is not deterministic:\n%+v\n%+v", i, a, b)
			return
		}
	}
}
