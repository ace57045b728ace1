package play

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"unipod.dev/unipod/internal/timeline"
)

// again is how long a sentence that was said about an object isn't repeated.
const again = time.Minute

// silent are the records that tell nothing to somebody who sees the rest.
var silent = map[string]bool{"Created": true, "Scheduled": true}

// talk finds the words for what happens. prefix may be called by any
// goroutine; the rest belongs to one.
type talk struct {
	colour bool

	mu      sync.Mutex
	width   int
	names   map[types.UID]string
	colours map[string]string // by "namespace/name/container"
	keys    map[types.UID]string
	taken   map[string]string // a pod's name: the namespace that has it, "" for several

	phase map[types.UID]string
	ends  map[string]bool // "containerID" of ends that were told
	said  map[string]time.Time
}

// palette has the colours that can be told apart on dark and light grounds.
var palette = []string{"36", "33", "32", "35", "34", "96", "93", "92", "95", "94"}

// newTalk is told of the pods that are known to come, so that their lines
// stand in one column from the first on.
func newTalk(pods []*v1.Pod, colour bool) *talk {
	t := &talk{
		colour: colour, names: map[types.UID]string{}, colours: map[string]string{}, keys: map[types.UID]string{}, taken: map[string]string{},
		phase: map[types.UID]string{}, ends: map[string]bool{}, said: map[string]time.Time{},
	}
	for _, pod := range pods {
		t.take(pod)
	}
	for _, pod := range pods {
		t.widen(pod)
	}
	return t
}

// take enters a pod's name.
func (t *talk) take(pod *v1.Pod) {
	if ns, ok := t.taken[pod.Name]; ok && ns != pod.Namespace {
		t.taken[pod.Name] = ""
	} else {
		t.taken[pod.Name] = pod.Namespace
	}
}

// name is the pod's, with its namespace where another has the same.
func (t *talk) name(pod *v1.Pod) string {
	if t.taken[pod.Name] == "" {
		return pod.Namespace + "/" + pod.Name
	}
	return pod.Name
}

// widen makes room for a pod's containers, and gives them colours.
func (t *talk) widen(pod *v1.Pod) {
	name := t.name(pod)
	t.width = max(t.width, len(name))
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if key := pod.Namespace + "/" + pod.Name + "/" + c.Name; t.colours[key] == "" {
			t.colours[key] = palette[len(t.colours)%len(palette)]
		}
		t.width = max(t.width, len(name)+1+len(c.Name))
	}
}

// meet makes a pod known.
func (t *talk) meet(pod *v1.Pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys[pod.UID] == "" {
		t.take(pod)
		t.keys[pod.UID] = pod.Namespace + "/" + pod.Name
		t.names[pod.UID] = t.name(pod)
	}
	t.widen(pod)
}

// prefix is what stands before a line about a container, or about the pod
// when container is empty: its name, padded and coloured, and a mark.
func (t *talk) prefix(uid types.UID, container, mark string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := t.names[uid]
	if container != "" {
		name += "/" + container
	}
	text := fmt.Sprintf("%-*s %s ", t.width, name, mark)
	if c := t.colours[t.keys[uid]+"/"+container]; t.colour && c != "" {
		return "\x1b[" + c + "m" + text + "\x1b[0m"
	}
	return text
}

func (t *talk) paint(code, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

const (
	red    = "31"
	yellow = "33"
	bold   = "1"
)

// record has the words for a sentence recorded about a pod: kubelet's own.
func (t *talk) record(pod *v1.Pod, r *timeline.Record, now time.Time) []string {
	if r == nil || silent[r.Reason] {
		return nil
	}
	return t.once(t.prefix(pod.UID, r.Container, "·"), string(pod.UID)+"/"+r.Container, r, now)
}

// object has the words for one about another object: only warnings, what goes
// well shows in its pods.
func (t *talk) object(of string, r *timeline.Record, now time.Time) []string {
	if r == nil || r.Type != v1.EventTypeWarning {
		return nil
	}
	return t.once(of+" · ", of, r, now)
}

func (t *talk) once(prefix, about string, r *timeline.Record, now time.Time) []string {
	text := strings.ReplaceAll(strings.TrimSpace(r.Message), "\n", " ")
	if r.Type == v1.EventTypeWarning {
		text = t.paint(yellow, r.Reason+": "+text)
	}
	key := about + "/" + text
	if last, ok := t.said[key]; ok && now.Sub(last) < again {
		return nil
	}
	t.said[key] = now
	return []string{prefix + text}
}

// status has the words for what changed since the pod's last status.
func (t *talk) status(pod *v1.Pod) []string {
	var lines []string
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		for _, end := range []*v1.ContainerStateTerminated{s.LastTerminationState.Terminated, s.State.Terminated} {
			// What never ran has no end to tell.
			if end == nil || t.ends[endKey(pod, s.Name, end)] || end.ContainerID == "" && end.Reason == "ContainerStatusUnknown" {
				continue
			}
			t.ends[endKey(pod, s.Name, end)] = true
			lines = append(lines, t.prefix(pod.UID, s.Name, "·")+t.end(end))
		}
	}
	if phase := phaseWords(pod); phase != "" && phase != t.phase[pod.UID] {
		t.phase[pod.UID] = phase
		if pod.Status.Phase == v1.PodFailed {
			phase = t.paint(red, phase)
		} else {
			phase = t.paint(bold, phase)
		}
		lines = append(lines, t.prefix(pod.UID, "", "·")+phase)
	}
	return lines
}

// endKey names one end of one container. A container that never got an ID
// (it couldn't be started) is told by its time.
func endKey(pod *v1.Pod, name string, end *v1.ContainerStateTerminated) string {
	id := end.ContainerID
	if id == "" {
		id = end.FinishedAt.String()
	}
	return string(pod.UID) + "/" + name + "/" + id
}

func (t *talk) end(end *v1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exited with code %d", end.ExitCode)
	if end.Signal != 0 {
		text = fmt.Sprintf("ended by signal %d", end.Signal)
	}
	if end.Reason != "" && end.Reason != "Completed" && end.Reason != "Error" {
		text += " (" + end.Reason + ")"
	}
	if m := strings.TrimSpace(end.Message); m != "" {
		text += ": " + strings.ReplaceAll(m, "\n", " ")
	}
	if end.ExitCode != 0 {
		return t.paint(red, text)
	}
	return text
}

// phaseWords is the pod's state in a few words, with its addresses.
func phaseWords(pod *v1.Pod) string {
	text := string(pod.Status.Phase)
	switch pod.Status.Phase {
	case v1.PodPending: // as every pod begins: what it waits for is said apart
		return ""
	case v1.PodRunning:
		if ready(pod) {
			text += ", ready"
		}
	}
	if pod.Status.Reason != "" {
		text += " (" + pod.Status.Reason + ")"
		if pod.Status.Message != "" {
			text += ": " + pod.Status.Message
		}
	}
	var ips []string
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) > 0 && pod.Status.Phase == v1.PodRunning {
		text += ", " + strings.Join(ips, " ")
	}
	return text
}

func ready(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.PodReady && c.Status == v1.ConditionTrue
	})
}
