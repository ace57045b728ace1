package lifecycle

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	"sigs.k8s.io/yaml"
)

// script is what the world does.
type script struct {
	until     time.Duration
	behaviour map[string]behaviour
	failures  map[string][]string
	health    map[string]health
	at        []happening
	quiet     []string
}

type behaviour struct {
	runs           []run
	stopAfter      time.Duration
	stopCode       int32
	deaf           bool
	preStop        time.Duration
	postStart      time.Duration
	postStartError string
}

type run struct {
	ends   bool
	after  time.Duration
	code   int32
	reason string
}

func (b behaviour) run(n int) run {
	if len(b.runs) == 0 {
		return run{}
	}
	return b.runs[min(n, len(b.runs)-1)]
}

// health is when a probe fails: in [from, to).
type health []struct{ from, to time.Duration }

func (h health) ok(now time.Duration) bool {
	for _, bad := range h {
		if now >= bad.from && now < bad.to {
			return false
		}
	}
	return true
}

type happening struct {
	at   time.Duration
	what string
}

// parseScript reads a story's first part:
//
//	# a comment
//	until <time>                               the story ends (default: when nothing can happen)
//	quiet conditions volumes                   leave these out
//	run <c>: <code> after <time> [reason]; ... how its runs end; "stays" for one that does not; the last repeats
//	stop <c>: after <time> [code <n>] | deaf   how it takes its stop signal
//	prestop <c>: <time>                        how long the hook takes
//	poststart <c>: <time> [error]              likewise, and how it fails
//	fail volumes|sandbox|resize|start <c>: <error>; ...   what goes wrong, one after the other; "-" for success
//	sick <c> <probe>: <from>-<to>, ...         when a probe fails
//	at <time>: <happening>                     see happen
//	pod:                                       and the rest is the pod's spec, a manifest's "spec:"
func parseScript(text string) (*world, error) {
	w := &world{
		script: script{behaviour: map[string]behaviour{}, failures: map[string][]string{}, health: map[string]health{}},
		view:   View{Runtime: "fake"}, probes: map[string]bool{}, said: map[string]bool{}, runs: map[string]int{}, marked: -1,
	}
	lines, spec, found := strings.Cut(text, "\npod:\n")
	if !found {
		return nil, fmt.Errorf("no pod")
	}
	for n, line := range strings.Split(lines, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := w.parseLine(line); err != nil {
			return nil, fmt.Errorf("line %d (%s): %w", n+1, line, err)
		}
	}
	w.pod = &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(spec), &w.pod.Spec); err != nil {
		return nil, err
	}
	w.pod.Name, w.pod.Namespace, w.pod.UID, w.pod.Generation = "web", "default", "u1", 1
	corev1.SetObjectDefaults_Pod(w.pod)
	return w, nil
}

func (w *world) parseLine(line string) error {
	if rest, ok := strings.CutPrefix(line, "until "); ok {
		d, err := time.ParseDuration(rest)
		w.until = d
		return err
	}
	if rest, ok := strings.CutPrefix(line, "quiet "); ok {
		w.quiet = strings.Fields(rest)
		return nil
	}
	head, rest, ok := strings.Cut(line, ": ")
	if !ok {
		return fmt.Errorf("no colon")
	}
	words := strings.Fields(head)
	switch words[0] {
	case "at":
		d, err := time.ParseDuration(words[1])
		w.at = append(w.at, happening{d, rest})
		return err
	case "fail":
		for _, f := range strings.Split(rest, "; ") {
			w.failures[strings.Join(words[1:], " ")] = append(w.failures[strings.Join(words[1:], " ")], strings.TrimPrefix(f, "-"))
		}
		return nil
	case "sick":
		h, err := parseHealth(rest)
		w.health[words[1]+" "+words[2]] = h
		return err
	}
	b := w.behaviour[words[1]]
	err := b.parse(words[0], rest)
	w.behaviour[words[1]] = b
	return err
}

func parseHealth(text string) (health, error) {
	var h health
	for _, span := range strings.Split(text, ", ") {
		from, to, _ := strings.Cut(span, "-")
		a, err := time.ParseDuration(from)
		if err != nil {
			return nil, err
		}
		b := 1000 * time.Hour
		if to != "" {
			if b, err = time.ParseDuration(to); err != nil {
				return nil, err
			}
		}
		h = append(h, struct{ from, to time.Duration }{a, b})
	}
	return h, nil
}

func (b *behaviour) parse(verb, text string) (err error) {
	words := strings.Fields(text)
	switch verb {
	case "run":
		for _, r := range strings.Split(text, "; ") {
			parsed, err := parseRun(r)
			if err != nil {
				return err
			}
			b.runs = append(b.runs, parsed)
		}
	case "stop":
		if b.deaf = text == "deaf"; b.deaf {
			return nil
		}
		if b.stopAfter, err = time.ParseDuration(words[1]); err != nil {
			return err
		}
		if len(words) > 3 {
			code, err := strconv.Atoi(words[3])
			b.stopCode = int32(code)
			return err
		}
	case "prestop":
		b.preStop, err = time.ParseDuration(text)
	case "poststart":
		b.postStartError = strings.Join(words[1:], " ")
		b.postStart, err = time.ParseDuration(words[0])
	default:
		return fmt.Errorf("what is %q", verb)
	}
	return err
}

func parseRun(text string) (run, error) {
	words := strings.Fields(text)
	if words[0] == "stays" {
		return run{}, nil
	}
	code, err := strconv.Atoi(words[0])
	if err != nil {
		return run{}, err
	}
	after, err := time.ParseDuration(words[2])
	return run{ends: true, after: after, code: int32(code), reason: strings.Join(words[3:], " ")}, err
}

// happen makes something happen to the pod:
//
//	delete [<grace>]                 the pod is deleted
//	exit <c> <code> [reason]         a running container ends
//	sandbox dies                     pause is gone and all with it
//	lose <c>                         the runtime forgets a container
//	unknown <c>                      the runtime does not know any more how it is
//	restart engine                   the machine's memory is lost, the status is not
//	reboot                           likewise, and the runtime knows nothing any more
//	image <c> <image>                the spec is changed
//	resize <c> cpu=<q> memory=<q>    likewise, limits and requests alike
//	condition <type>=<status>        somebody sets a pod condition
//	ephemeral <c> <target>           an ephemeral container is added
//	evict <reason> <message>         the node has no room for it
//	reject <reason> <message>        the node doesn't take it in
//	shutdown                         the node is about to go
//	prune                            the node needs the room of what has ended
//	pulled <image>                   another pod has pulled it
func (w *world) happen(what string) {
	w.say("%s", what)
	words := strings.Fields(what)
	switch words[0] {
	case "delete":
		grace := *w.pod.Spec.TerminationGracePeriodSeconds
		if len(words) > 1 {
			grace, _ = strconv.ParseInt(words[1], 10, 64)
		}
		w.delete(grace)
	case "exit":
		code, _ := strconv.Atoi(words[2])
		for _, c := range w.view.Containers {
			if c.Name == words[1] && c.State == Running {
				w.exit(c.ID, int32(code), strings.Join(words[3:], " "))
				return
			}
		}
	case "sandbox":
		if len(w.view.Sandboxes) > 0 {
			w.stopSandbox(w.view.Sandboxes[0].ID)
		}
	case "lose", "unknown":
		for i := range w.view.Containers {
			if w.view.Containers[i].Name != words[1] {
				continue
			}
			w.view.Containers[i].State = Unknown
			if words[0] == "lose" {
				w.view.Containers = append(w.view.Containers[:i:i], w.view.Containers[i+1:]...)
			}
			return
		}
	case "reboot", "restart":
		if words[0] == "reboot" {
			w.view = View{Runtime: w.view.Runtime}
		}
		if w.state.Status() == nil {
			return
		}
		w.pod.Status = *w.state.Status().DeepCopy()
		w.state = State{}
		w.epoch++
		w.events, w.probes = nil, map[string]bool{}
		if w.watch != nil {
			clear(w.watch.starting)
		}
	case "pulled":
		w.events = append(w.events, ImagePulled{words[1]})
	case "prune":
		w.events = append(w.events, Prune{})
	case "reject":
		w.events = append(w.events, Evicted{Reason: words[1], Message: strings.Join(words[2:], " "), Rejected: true})
	case "shutdown":
		grace := int64(10)
		w.events = append(w.events, Evicted{Reason: "Terminated", Message: "shutdown", Grace: &grace})
	case "evict":
		w.events = append(w.events, Evicted{Reason: words[1], Message: strings.Join(words[2:], " "), Condition: &v1.PodCondition{
			Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: "The node was low on resource: memory.",
		}})
	default:
		w.edit(words)
	}
}

// edit changes the pod.
func (w *world) edit(words []string) {
	pod := w.pod.DeepCopy()
	pod.Generation++
	c := specs(pod)[words[1]]
	switch words[0] {
	case "image":
		c.Image = words[2]
		for i := range w.view.Containers {
			if w.view.Containers[i].Name == c.Name {
				w.view.Containers[i].Changed = true
			}
		}
	case "resize":
		for _, word := range words[2:] {
			name, q, _ := strings.Cut(word, "=")
			c.Resources.Limits[v1.ResourceName(name)] = resource.MustParse(q)
			c.Resources.Requests[v1.ResourceName(name)] = resource.MustParse(q)
		}
	case "condition":
		pod.Generation--
		t, status, _ := strings.Cut(words[1], "=")
		pod.Status.Conditions = []v1.PodCondition{{Type: v1.PodConditionType(t), Status: v1.ConditionStatus(status)}}
	case "ephemeral":
		ec := v1.EphemeralContainer{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: words[1], Image: "debug:1"}, TargetContainerName: words[2]}
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, ec)
		corev1.SetObjectDefaults_Pod(pod)
	default:
		panic("no such happening: " + strings.Join(words, " "))
	}
	w.pod = pod
}
