package timeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"unipod.dev/unipod/test/golden"
)

var t0 = time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC)

// TestTimelines tells every testdata/*.txt: a pod's history, then "----", then
// its timeline. The grammar is at happen.
func TestTimelines(t *testing.T) {
	golden.Stories(t, func(t *testing.T, script string) string {
		var out bytes.Buffer
		tl := tell(t, script).Timeline()
		if err := tl.Write(&out, false); err != nil {
			t.Fatal(err)
		}
		return out.String()
	})
}

func tell(t *testing.T, script string) *Builder {
	t.Helper()
	history, spec, found := strings.Cut(script, "\npod:\n")
	if !found {
		t.Fatal("no pod")
	}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	b := New(t0, pod)
	for line := range strings.Lines(history) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at, rest, _ := strings.Cut(line, " ")
		d, err := time.ParseDuration(at)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		pod = pod.DeepCopy()
		if err := happen(b, pod, t0.Add(d), strings.TrimSpace(rest)); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return b
}

// happen feeds the builder with one line:
//
//	record Warning|Normal <reason> <container|->: <message>
//	removed
//
// and any number of these, separated by "; ", for one status:
//
//	phase <phase> [<reason> <message>]
//	condition <type>=<status> [<reason> <message>]
//	ip <address>
//	delete <seconds>
//	<container> waiting <reason> [<message>]
//	<container> runs <n> [started] [ready]        its nth run
//	<container> ends <n> <code> <reason> [<message>]
//	<container> ended <n> <code> <reason>         likewise, in lastState
func happen(b *Builder, pod *v1.Pod, now time.Time, what string) error {
	if rest, ok := strings.CutPrefix(what, "record "); ok {
		head, message, _ := strings.Cut(rest, ": ")
		w := strings.Fields(head)
		b.Record(now, Record{Type: w[0], Reason: w[1], Container: strings.Trim(w[2], "-"), Message: message})
		return nil
	}
	if what == "removed" {
		b.Removed(now)
		return nil
	}
	for part := range strings.SplitSeq(what, "; ") {
		if err := edit(pod, now, strings.Fields(part)); err != nil {
			return err
		}
	}
	b.Status(now, pod)
	return nil
}

func edit(pod *v1.Pod, now time.Time, w []string) error {
	rest := func(n int) string { return strings.Join(w[min(n, len(w)):], " ") }
	word := func(n int) string {
		if n < len(w) {
			return w[n]
		}
		return ""
	}
	switch w[0] {
	case "phase":
		pod.Status.Phase, pod.Status.Reason, pod.Status.Message = v1.PodPhase(w[1]), word(2), rest(3)
		return nil
	case "condition":
		kind, status, _ := strings.Cut(w[1], "=")
		c := v1.PodCondition{Type: v1.PodConditionType(kind), Status: v1.ConditionStatus(status), Reason: word(2), Message: rest(3)}
		for i := range pod.Status.Conditions {
			if pod.Status.Conditions[i].Type == c.Type {
				pod.Status.Conditions[i] = c
				return nil
			}
		}
		pod.Status.Conditions = append(pod.Status.Conditions, c)
		return nil
	case "ip":
		pod.Status.PodIPs = append(pod.Status.PodIPs, v1.PodIP{IP: w[1]})
		return nil
	case "delete":
		grace, err := strconv.ParseInt(w[1], 10, 64)
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = ptr.To(metav1.NewTime(now)), &grace
		return err
	}
	return editContainer(statusOf(pod, w[0]), now, w, rest, word)
}

func editContainer(s *v1.ContainerStatus, now time.Time, w []string, rest func(int) string, word func(int) string) error {
	if w[1] == "waiting" {
		s.State, s.Ready, s.Started = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: word(2), Message: rest(3)}}, false, ptr.To(false)
		return nil
	}
	n, err := strconv.Atoi(w[2])
	if err != nil {
		return err
	}
	id := fmt.Sprintf("unipod://%s-%d", s.Name, n)
	switch w[1] {
	case "runs":
		s.ContainerID, s.RestartCount = id, int32(n)
		s.State = v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.NewTime(now)}}
		s.Started, s.Ready = ptr.To(strings.Contains(rest(3), "started")), strings.Contains(rest(3), "ready")
		return nil
	case "ends", "ended":
		code, err := strconv.Atoi(w[3])
		end := &v1.ContainerStateTerminated{ExitCode: int32(code), Reason: word(4), Message: rest(5), ContainerID: id, FinishedAt: metav1.NewTime(now)}
		if end.Reason != "StartError" {
			end.StartedAt = metav1.NewTime(now)
		}
		s.RestartCount = max(s.RestartCount, int32(n))
		if w[1] == "ends" {
			s.ContainerID, s.State = id, v1.ContainerState{Terminated: end}
			s.Ready, s.Started = code == 0, ptr.To(false)
		} else {
			s.LastTerminationState = v1.ContainerState{Terminated: end}
		}
		return err
	}
	return fmt.Errorf("what is %q", w[1])
}

func statusOf(pod *v1.Pod, name string) *v1.ContainerStatus {
	list := &pod.Status.ContainerStatuses
	for _, c := range pod.Spec.InitContainers {
		if c.Name == name {
			list = &pod.Status.InitContainerStatuses
		}
	}
	for i := range *list {
		if (*list)[i].Name == name {
			return &(*list)[i]
		}
	}
	*list = append(*list, v1.ContainerStatus{Name: name})
	return &(*list)[len(*list)-1]
}

// Colour is only added: without it the text is the same.
func TestColour(t *testing.T) {
	text, err := os.ReadFile("testdata/job.txt")
	if err != nil {
		t.Fatal(err)
	}
	script, want, _ := strings.Cut(string(text), "\n----\n")
	var out bytes.Buffer
	tl := tell(t, script).Timeline()
	if err := tl.Write(&out, true); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	if !strings.Contains(got, "\x1b[31m") {
		t.Error("a failure is not red")
	}
	for _, code := range []string{"0", bold, dim, red, green, yellow} {
		got = strings.ReplaceAll(got, "\x1b["+code+"m", "")
	}
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A life of any length has a timeline of bounded size, with its beginning and
// its end in it.
func TestLongLife(t *testing.T) {
	script := &strings.Builder{}
	for n := range 1000 {
		fmt.Fprintf(script, "%ds app runs %d started ready\n%ds app ends %d 1 Error\n", 2*n, n, 2*n+1, n)
	}
	script.WriteString("\npod:\n  containers: [{name: app, image: i}]\n")
	tl := tell(t, script.String()).Timeline()
	if len(tl.Entries) != maxEntries || tl.LeftOut != 2001-maxEntries || len(tl.Containers[0].Runs) != maxRuns {
		t.Fatalf("%d entries, %d left out, %d runs", len(tl.Entries), tl.LeftOut, len(tl.Containers[0].Runs))
	}
	if first, last := tl.Entries[0], tl.Entries[maxEntries-1]; first.Event != Created || last.Event != Exited || last.Restarts != 999 {
		t.Errorf("from %+v to %+v", first, last)
	}
	var out bytes.Buffer
	if err := tl.Write(&out, false); err != nil || !strings.Contains(out.String(), "… 1601 more …") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestJSON(t *testing.T) {
	tl := tell(t, "1500ms app runs 0 started ready\n\npod:\n  containers: [{name: app, image: i}]\n").Timeline()
	b, err := json.Marshal(tl)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"namespace":"default","name":"web","uid":"u1","created":"2026-11-23T15:00:00Z","end":"2026-11-23T15:00:01.5Z","phase":"","restarts":0,` +
		`"containers":[{"name":"app","role":"app","restarts":0,"state":"running","runs":[{"start":"2026-11-23T15:00:01.5Z","ready":"2026-11-23T15:00:01.5Z"}]}],` +
		`"entries":[{"seconds":0,"time":"2026-11-23T15:00:00Z","event":"Created","text":"created"},` +
		`{"seconds":1.5,"time":"2026-11-23T15:00:01.5Z","container":"app","event":"Started","text":"started"}]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

// What is on record before anybody told of the pod's containers is told with
// them.
func TestEarlyRecords(t *testing.T) {
	now := time.Unix(0, 0)
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u"}}
	b := New(now, pod)
	b.Record(now, Record{Type: "Normal", Reason: "Started", Container: "app", Message: "Container started"})
	pod = pod.DeepCopy()
	pod.Spec.Containers = []v1.Container{{Name: "app"}}
	b.Status(now, pod)
	var got []string
	for _, e := range b.Timeline().Entries {
		got = append(got, strings.TrimSpace(e.Container+" "+e.Text))
	}
	if want := []string{"created", "app started"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
