package timeline

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// A life longer than this loses entries of its middle, a container its oldest
// runs.
const (
	maxEntries = 400
	maxRuns    = 64
)

// Builder takes a pod's history in.
type Builder struct {
	created time.Time
	end     time.Time
	pod     *v1.Pod // as last seen
	entries []Entry
	leftOut int
	lives   map[string]*life
	order   []string
	early   []Record // of a pod whose containers nobody told yet
}

// life is what a Builder remembers of one container.
type life struct {
	role     string
	status   v1.ContainerStatus
	runs     []Run
	seen     map[string]bool // IDs of runs whose start was counted
	ended    map[string]bool // keys of ends that were told
	started  int             // runs whose start was told
	recorded int             // starts on record
	counted  int             // starts seen in a status
	waiting  string          // reason that was told
}

// New begins the timeline of a pod, seen first at a time. What its status
// already says is taken as known: it is what happened before.
func New(now time.Time, pod *v1.Pod) *Builder {
	b := &Builder{created: now, end: now, lives: map[string]*life{}, pod: &v1.Pod{ObjectMeta: pod.ObjectMeta}}
	b.add(Entry{Time: now, Event: Created, Text: "created"})
	b.meet(pod)
	b.Status(now, pod)
	return b
}

// meet makes room for containers that weren't there before.
func (b *Builder) meet(pod *v1.Pod) {
	add := func(name, role string) {
		if b.lives[name] == nil {
			b.lives[name] = &life{role: role, seen: map[string]bool{}, ended: map[string]bool{}}
			b.order = append(b.order, name)
		}
	}
	for _, c := range pod.Spec.InitContainers {
		role := RoleInit
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			role = RoleSidecar
		}
		add(c.Name, role)
	}
	for _, c := range pod.Spec.Containers {
		add(c.Name, RoleApp)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		add(c.Name, RoleEphemeral)
	}
}

func (b *Builder) add(e Entry) {
	if e.Time.Before(b.end) { // a watch's clock never runs backwards; a wall clock may
		e.Time = b.end
	}
	b.end = e.Time
	e.After = e.Time.Sub(b.created)
	e.Text = oneLine(e.Text)
	if b.repeats(e) {
		return
	}
	b.entries = append(b.entries, e)
	if len(b.entries) > maxEntries {
		b.entries = slices.Delete(b.entries, maxEntries/2, maxEntries/2+1)
		b.leftOut++
	}
}

// repeats counts an entry that says again what its container's latest said.
// Only what can go on for ever is counted: probes and the like.
func (b *Builder) repeats(e Entry) bool {
	if e.Event == Started || e.Event == Exited || e.Event == Waiting || e.Event == PhaseChanged {
		return false
	}
	for i := len(b.entries) - 1; i >= 0; i-- {
		last := &b.entries[i]
		if last.Container != e.Container {
			continue
		}
		if last.Event != e.Event || last.Text != e.Text {
			return false
		}
		last.Count = max(last.Count, 1) + 1
		last.Last = e.Time
		return true
	}
	return false
}

// oneLine keeps a text from containers or registries on its line, and short.
func oneLine(text string) string {
	const most = 300
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "…"
	}
	return text
}

// silent are the records that a status tells better.
var silent = map[string]bool{"Created": true, "Scheduled": true, "BackOff": true, "Failed": true}

// Record takes in a sentence about the pod.
func (b *Builder) Record(now time.Time, r Record) {
	switch {
	case silent[r.Reason]:
		return
	case len(b.lives) == 0:
		if len(b.early) < maxEntries {
			b.early = append(b.early, r)
		}
		return
	case r.Reason == "Started" && b.lives[r.Container] != nil:
		l := b.lives[r.Container]
		l.recorded++
		// While its last run isn't known to have ended this one must wait.
		if n := len(l.runs); n == 0 || !l.runs[n-1].End.IsZero() {
			b.start(now, r.Container, l)
		}
		return
	}
	e := Entry{Time: now, Container: r.Container, Event: r.Reason, Text: r.Message, Recorded: true, Warning: r.Type == v1.EventTypeWarning}
	switch r.Reason {
	case Pulling, Pulled, Killing:
		e.Text = trimSubject(r.Message, r.Container)
	case Unhealthy:
	default:
		e.Text = r.Reason + ": " + r.Message
	}
	b.add(e)
}

// trimSubject leaves out what the line's subject says already.
func trimSubject(text, container string) string {
	for _, kind := range []string{"Init container ", "Container "} {
		if rest, ok := strings.CutPrefix(text, kind+container+" "); ok {
			return rest
		}
	}
	text = strings.TrimSuffix(text, " container "+container)
	if !strings.Contains(text, " ") && text != "Stopping" {
		return text // a word of Kubernetes'
	}
	return strings.ToLower(text[:min(1, len(text))]) + text[min(1, len(text)):]
}

// start tells that a container runs, unless the other source has told it: a
// record and a status come in either order, and either may be missing.
func (b *Builder) start(now time.Time, name string, l *life) {
	if max(l.recorded, l.counted) <= l.started {
		return
	}
	restarts := int32(l.started)
	l.started = max(l.recorded, l.counted)
	e := Entry{Time: now, Container: name, Event: Started, Text: "started", Restarts: restarts}
	if restarts > 0 {
		e.Text = fmt.Sprintf("started again (restart %d)", restarts)
	}
	b.add(e)
	l.runs = append(l.runs, Run{Start: b.end})
	if len(l.runs) > maxRuns {
		l.runs = slices.Delete(l.runs, 0, 1)
	}
}

// Status takes in the pod as it is now.
func (b *Builder) Status(now time.Time, pod *v1.Pod) {
	old := b.pod
	b.meet(pod)
	if early := b.early; len(b.lives) > 0 {
		b.early = nil
		for _, r := range early {
			b.Record(now, r)
		}
	}
	b.podBefore(now, old, pod)
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if l := b.lives[list[i].Name]; l != nil {
				b.container(now, pod, l, &list[i])
			}
		}
	}
	b.podAfter(now, old, pod)
	b.pod = pod
}

// Removed takes in that the pod is gone.
func (b *Builder) Removed(now time.Time) { b.add(Entry{Time: now, Event: Removed, Text: "removed"}) }

func condition(pod *v1.Pod, t v1.PodConditionType) v1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return v1.PodCondition{Type: t}
}

func isTrue(pod *v1.Pod, t v1.PodConditionType) bool {
	return condition(pod, t).Status == v1.ConditionTrue
}

// podBefore tells what changed of the pod that its containers' changes follow
// from.
func (b *Builder) podBefore(now time.Time, old, pod *v1.Pod) {
	became := func(t v1.PodConditionType) bool { return isTrue(pod, t) && !isTrue(old, t) }
	if became(v1.PodScheduled) {
		text := "scheduled"
		if pod.Spec.NodeName != "" {
			text += " on " + pod.Spec.NodeName
		}
		b.add(Entry{Time: now, Event: Scheduled, Text: text})
	}
	if pod.DeletionTimestamp != nil && old.DeletionTimestamp == nil && !final(old) {
		e := Entry{Time: now, Event: DeletionBegins, Text: "deletion begins"}
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			e.Text += fmt.Sprintf(", %d s of grace", *g)
		}
		b.add(e)
	}
	if became(v1.DisruptionTarget) {
		c := condition(pod, v1.DisruptionTarget)
		b.add(Entry{Time: now, Event: Disrupted, Text: withReason("disrupted", c.Reason, c.Message), Reason: c.Reason, Warning: true})
	}
	if became(v1.PodReadyToStartContainers) {
		text := "sandbox ready"
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		if len(ips) > 0 {
			text += ", " + strings.Join(ips, " ")
		}
		b.add(Entry{Time: now, Event: SandboxReady, Text: text})
	}
	for _, t := range []v1.PodConditionType{v1.PodResizePending, v1.PodResizeInProgress} {
		c, before := condition(pod, t), condition(old, t)
		if c.Status == v1.ConditionTrue && (before.Status != c.Status || before.Reason != c.Reason || before.Message != c.Message) {
			b.add(Entry{Time: now, Event: Resizing, Text: withReason(string(t), c.Reason, c.Message), Reason: c.Reason, Warning: c.Reason != ""})
		}
	}
}

func withReason(text, reason, message string) string {
	if reason != "" {
		text += " (" + reason + ")"
	}
	if message != "" {
		text += ": " + message
	}
	return text
}

func final(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// podAfter tells what changed of the pod because its containers did.
func (b *Builder) podAfter(now time.Time, old, pod *v1.Pod) {
	if phase := pod.Status.Phase; phase != old.Status.Phase && phase != "" && phase != v1.PodPending {
		b.add(Entry{Time: now, Event: PhaseChanged, Text: withReason(string(phase), pod.Status.Reason, pod.Status.Message),
			Reason: string(phase), Warning: phase == v1.PodFailed})
	}
	if isTrue(pod, v1.AllContainersRestarting) && !isTrue(old, v1.AllContainersRestarting) {
		b.add(Entry{Time: now, Event: RestartingAll, Text: "restarting all containers", Warning: true})
	}
	switch is, was := isTrue(pod, v1.PodReady), isTrue(old, v1.PodReady); {
	case is && !was:
		b.add(Entry{Time: now, Event: Ready, Text: "ready"})
	case was && !is && pod.DeletionTimestamp == nil && !final(pod):
		b.add(Entry{Time: now, Event: NotReady, Text: "not ready", Reason: condition(pod, v1.PodReady).Reason})
	}
}

// container tells what changed of one container.
func (b *Builder) container(now time.Time, pod *v1.Pod, l *life, s *v1.ContainerStatus) {
	for _, end := range []*v1.ContainerStateTerminated{s.LastTerminationState.Terminated, s.State.Terminated} {
		if end == nil || l.ended[endKey(end)] {
			continue
		}
		l.ended[endKey(end)] = true
		if end.ContainerID == "" && end.StartedAt.IsZero() && l.started == 0 && end.Reason != "StartError" {
			continue // what never ran has no end to tell
		}
		if end.ContainerID == "" && end.Reason == "RestartingAllContainers" {
			continue // it waits for that reason, too
		}
		b.ends(now, s, l, end)
	}
	if s.State.Running != nil {
		if id := s.ContainerID; !l.seen[id] {
			l.seen[id] = true
			b.sees(now, s.Name, l)
		}
		l.waiting = ""
		b.health(now, pod, l, s)
	}
	if w := s.State.Waiting; w != nil && w.Reason != l.waiting {
		l.waiting = w.Reason
		if w.Reason != "" && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			text := "waiting: " + w.Reason
			if w.Message != "" {
				text += ": " + w.Message
			}
			b.add(Entry{Time: now, Container: s.Name, Event: Waiting, Text: text, Reason: w.Reason, Warning: true, Restarts: s.RestartCount})
		}
	}
	l.status = *s
}

// ends tells one end of a container. One whose beginning nobody saw is told
// as well.
func (b *Builder) ends(now time.Time, s *v1.ContainerStatus, l *life, end *v1.ContainerStateTerminated) {
	ran := !end.StartedAt.IsZero() && end.Reason != "StartError" && end.Reason != "ContainerStatusUnknown"
	if ran && !l.seen[end.ContainerID] {
		l.seen[end.ContainerID] = true
		b.sees(now, s.Name, l)
	}
	code := end.ExitCode
	e := Entry{Time: now, Container: s.Name, Event: Exited, Text: endWords(end), Reason: end.Reason, ExitCode: &code, Warning: code != 0, Restarts: int32(max(l.started-1, 0))}
	b.add(e)
	if n := len(l.runs); n > 0 && l.runs[n-1].End.IsZero() {
		l.runs[n-1].End, l.runs[n-1].ExitCode = b.end, &code
	}
	b.start(now, s.Name, l) // the next one, if it is on record
}

// sees tells of a run that a status shows, unless a record has: what is on
// record beyond it comes after its end.
func (b *Builder) sees(now time.Time, name string, l *life) {
	if l.counted++; l.counted > l.started {
		b.start(now, name, l)
	}
}

// endKey names one end of a container. One that never got an ID is told by
// its time.
func endKey(end *v1.ContainerStateTerminated) string {
	return cmp.Or(end.ContainerID, end.Reason+" "+end.FinishedAt.UTC().String())
}

func endWords(end *v1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exited with code %d", end.ExitCode)
	switch {
	case end.ExitCode == 0 && end.Reason == "Completed":
		text = "completed"
	case end.Signal != 0:
		text = fmt.Sprintf("ended by signal %d", end.Signal)
	}
	if end.Reason != "" && end.Reason != "Completed" && end.Reason != "Error" {
		text += " (" + end.Reason + ")"
	}
	if m := strings.TrimSpace(end.Message); m != "" {
		text += ": " + m
	}
	return text
}

// health tells of a running container's probes, if it has some to tell of.
func (b *Builder) health(now time.Time, pod *v1.Pod, l *life, s *v1.ContainerStatus) {
	spec := find(pod, s.Name)
	if spec == nil {
		return
	}
	same := l.status.State.Running != nil && l.status.ContainerID == s.ContainerID
	started := func(s *v1.ContainerStatus) bool { return s.Started != nil && *s.Started }
	if spec.StartupProbe != nil && started(s) && !(same && started(&l.status)) {
		b.add(Entry{Time: now, Container: s.Name, Event: StartedUp, Text: "started up", Restarts: s.RestartCount})
	}
	wasReady := same && l.status.Ready
	if n := len(l.runs); s.Ready && n > 0 && l.runs[n-1].ReadyAt.IsZero() {
		l.runs[n-1].ReadyAt = b.end
	}
	if spec.ReadinessProbe == nil || s.Ready == wasReady {
		return
	}
	if s.Ready {
		b.add(Entry{Time: now, Container: s.Name, Event: Ready, Text: "ready", Restarts: s.RestartCount})
	} else {
		b.add(Entry{Time: now, Container: s.Name, Event: NotReady, Text: "not ready", Restarts: s.RestartCount})
	}
}

func find(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// Timeline is what was taken in so far.
func (b *Builder) Timeline() Timeline {
	t := Timeline{
		Namespace: b.pod.Namespace, Name: b.pod.Name, UID: string(b.pod.UID), Created: b.created, End: b.end,
		Phase: b.pod.Status.Phase, Reason: b.pod.Status.Reason, Message: b.pod.Status.Message,
		LeftOut: b.leftOut, Entries: slices.Clone(b.entries), Containers: []Container{},
	}
	for _, name := range b.order {
		l := b.lives[name]
		c := Container{Name: name, Role: l.role, Restarts: l.status.RestartCount, State: "waiting", Runs: slices.Clone(l.runs)}
		switch s := l.status.State; {
		case s.Running != nil:
			c.State = "running"
		case s.Terminated != nil:
			code := s.Terminated.ExitCode
			c.State, c.Reason, c.ExitCode = "terminated", s.Terminated.Reason, &code
		case s.Waiting != nil:
			c.Reason = s.Waiting.Reason
		}
		t.Restarts += c.Restarts
		t.Containers = append(t.Containers, c)
	}
	return t
}
