package scenario

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"unipod.dev/unipod/internal/timeline"
)

// story is what must become of a pod.
type story struct {
	head   string // the text before the first section, kept as it is
	acts   []act
	skip   map[string]string // runtime to reason
	orders []order
	lanes  []section // in the order of the file
	logs   []section
}

// act is something the test does, when the pod has shown something.
type act struct {
	what  string // "interrupt", "kill pause"
	after string // in a line of the play, "[container] | output" or "[container] · sentence"
	times int
}

// section is what is told of one container, or of the pod.
type section struct {
	name  string
	lines []string
}

// order is "a happens before b".
type order struct {
	text string
	a, b moment
}

type moment struct {
	lane, text string
	nth        int
}

// parseStory reads a story:
//
//	# prose
//	interrupt after: <text> [#n]       the play is interrupted when its nth line about the pod contains this
//	kill pause after: <text> [#n]      the pod's pause process is killed then
//	not on <runtime>: <reason>         the scenario can't run there
//
//	order:                             what happens in different containers
//	  <lane>: <entry> [#n] < <lane>: <entry> [#n]
//	pod:                               a lane: the entries of the pod's timeline about itself
//	  <entry>
//	<container>:                       or about one of its containers
//	  <entry>
//	log <container>:                   what it says
//	  <line>
//
// Statuses and Events come by two ways, of which either may be the slower: an
// order between a status ("completed") and an Event ("started") is for what is
// far apart in time. What must be in order is best said by the containers.
//
// A line stands for itself; "…" at its end for any rest, and alone for any
// lines; "? " before it for something that may be missing: a state so short
// that nobody need have seen it. What a status shows and what is recorded are
// each in order, not one beside the other; and records, which are written one
// after another behind the pod's life, may end before their story does, when
// the play was faster. [TestScenarios] sees to it that they do come.
func parseStory(text string) (*story, error) {
	s := &story{skip: map[string]string{}}
	var open *[]section
	inOrder := false
	head := &strings.Builder{}
	for n, line := range strings.Split(text, "\n") {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("line %d: %s: %s", n+1, line, fmt.Sprintf(format, args...))
		}
		indented := strings.HasPrefix(line, "  ")
		line := strings.TrimSpace(line)
		if open == nil && !inOrder && (line == "" || !strings.HasSuffix(line, ":")) {
			head.WriteString(line + "\n")
		}
		switch name, isName := strings.CutSuffix(line, ":"); {
		case line == "" || strings.HasPrefix(line, "#") && !indented:
		case indented && inOrder:
			o, err := parseOrder(line)
			if err != nil {
				return nil, fail("%v", err)
			}
			s.orders = append(s.orders, o)
		case indented && open != nil:
			last := &(*open)[len(*open)-1]
			last.lines = append(last.lines, line)
		case indented:
			return nil, fail("in no section")
		case line == "order:":
			inOrder, open = true, nil
		case isName && strings.HasPrefix(name, "log "):
			inOrder, open = false, &s.logs
			s.logs = append(s.logs, section{name: strings.TrimPrefix(name, "log ")})
		case isName:
			inOrder, open = false, &s.lanes
			s.lanes = append(s.lanes, section{name: name})
		default:
			if err := s.parseHead(line); err != nil {
				return nil, fail("%v", err)
			}
		}
	}
	s.head = strings.TrimSpace(head.String())
	return s, nil
}

var nth = regexp.MustCompile(`^(.*?) #(\d+)$`)

func cutNth(text string) (string, int) {
	if m := nth.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[2])
		return m[1], n
	}
	return text, 1
}

func (s *story) parseHead(line string) error {
	what, rest, ok := strings.Cut(line, ": ")
	if !ok {
		return fmt.Errorf("no colon")
	}
	if runtime, ok := strings.CutPrefix(what, "not on "); ok {
		s.skip[runtime] = rest
		return nil
	}
	what, ok = strings.CutSuffix(what, " after")
	if !ok || what != "interrupt" && what != "kill pause" {
		return fmt.Errorf("what is %q", what)
	}
	text, times := cutNth(rest)
	s.acts = append(s.acts, act{what, text, times})
	return nil
}

func parseOrder(line string) (order, error) {
	a, b, ok := strings.Cut(line, " < ")
	if !ok {
		return order{}, fmt.Errorf("no <")
	}
	o := order{text: line}
	for _, half := range []struct {
		text string
		into *moment
	}{{a, &o.a}, {b, &o.b}} {
		lane, entry, ok := strings.Cut(half.text, ": ")
		if !ok {
			return order{}, fmt.Errorf("%q names no lane", half.text)
		}
		entry, n := cutNth(entry)
		*half.into = moment{lane, entry, n}
	}
	return o, nil
}

// matchLine reports whether one line is what is wanted.
func matchLine(want, got string) bool {
	if prefix, ok := strings.CutSuffix(want, "…"); ok {
		return strings.HasPrefix(got, prefix)
	}
	return want == got
}

// match reports whether lines are what is wanted.
func match(want, got []string) bool { return matchBoth(want, got, nil, false) }

// matchBoth is match of two streams, each in its own order: what is seen of a
// status and what is on record reach the reader by ways of their own. Where the
// record may end early, what would still be on it may be missing.
func matchBoth(want, seen, recorded []string, early bool) bool {
	switch {
	case len(want) == 0:
		return len(seen) == 0 && len(recorded) == 0
	case want[0] == "…":
		return matchBoth(want[1:], seen, recorded, early) || len(seen) > 0 && matchBoth(want, seen[1:], recorded, early) ||
			len(recorded) > 0 && matchBoth(want, seen, recorded[1:], early)
	}
	line, optional := strings.CutPrefix(want[0], "? ")
	optional = optional || early && len(recorded) == 0 && aRecord.MatchString(line)
	return len(seen) > 0 && matchLine(line, seen[0]) && matchBoth(want[1:], seen[1:], recorded, early) ||
		len(recorded) > 0 && matchLine(line, recorded[0]) && matchBoth(want[1:], seen, recorded[1:], early) ||
		optional && matchBoth(want[1:], seen, recorded, early)
}

// aRecord is what only records say.
var aRecord = regexp.MustCompile(`^(stopping|failed \w+ probe, will be restarted|\w+ probe failed: .*|pulling image .*|back-off .*|[A-Z][a-z]+([A-Z][a-z]+)+: .*)$`)

// event is an entry of a timeline without what differs from run to run.
type event struct {
	lane, text string
	recorded   bool
}

var (
	anAddress = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b|\[?fd[0-9a-f]{2}:[0-9a-f:]+\]?`)
	anID      = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
)

// eventsOf leaves out what every pod's timeline begins with, and that an image
// is present.
func eventsOf(t *timeline.Timeline) []event {
	var all []event
	for _, e := range t.Entries {
		if e.Event == timeline.Created || e.Event == timeline.Scheduled || e.Event == timeline.Removed ||
			e.Event == timeline.Pulled && strings.Contains(e.Text, "already present") {
			continue
		}
		text := e.Text
		if e.Event == timeline.SandboxReady {
			text, _, _ = strings.Cut(text, ",")
		}
		text = strings.ReplaceAll(text, t.UID, "UID")
		text = anAddress.ReplaceAllString(text, "ADDRESS")
		text = anID.ReplaceAllString(text, "ID")
		lane := e.Container
		if lane == "" {
			lane = "pod"
		}
		all = append(all, event{lane, text, e.Recorded})
	}
	return all
}

func laneOf(all []event, lane string) []string {
	var lines []string
	for _, e := range all {
		if e.lane == lane {
			lines = append(lines, e.text)
		}
	}
	return lines
}

func matchLane(want []string, all []event, lane string) bool {
	var seen, recorded []string
	for _, e := range all {
		switch {
		case e.lane == lane && e.recorded:
			recorded = append(recorded, e.text)
		case e.lane == lane:
			seen = append(seen, e.text)
		}
	}
	return matchBoth(want, seen, slices.Compact(recorded), true)
}

// find is the place of a moment among the events, -1 when it never came.
func (m moment) find(all []event) int {
	n := 0
	for i, e := range all {
		if e.lane == m.lane && matchLine(m.text, e.text) {
			if n++; n == m.nth {
				return i
			}
		}
	}
	return -1
}

// check says everything in which the events and logs differ from the story.
func (s *story) check(all []event, logs map[string][]string) []string {
	var wrong []string
	told := map[string]bool{}
	for _, l := range s.lanes {
		told[l.name] = true
		if got := laneOf(all, l.name); !matchLane(l.lines, all, l.name) {
			wrong = append(wrong, fmt.Sprintf("%s:\n  %s\nbut the story is\n  %s", l.name, strings.Join(got, "\n  "), strings.Join(l.lines, "\n  ")))
		}
	}
	for _, e := range all {
		if !told[e.lane] {
			told[e.lane] = true
			wrong = append(wrong, "the story tells nothing of "+e.lane)
		}
	}
	for _, l := range s.logs {
		if !match(l.lines, logs[l.name]) {
			wrong = append(wrong, fmt.Sprintf("log %s:\n  %s\nbut the story is\n  %s", l.name, strings.Join(logs[l.name], "\n  "), strings.Join(l.lines, "\n  ")))
		}
	}
	for _, o := range s.orders {
		a, b := o.a.find(all), o.b.find(all)
		switch {
		case a < 0 || b < 0:
			wrong = append(wrong, fmt.Sprintf("order %s: one of them never happened", o.text))
		case a >= b:
			wrong = append(wrong, fmt.Sprintf("order %s: it was the other way round", o.text))
		}
	}
	return wrong
}

// write is the story with what really happened in the place of what doesn't
// match; what has no section gets one.
func (s *story) write(all []event, logs map[string][]string) string {
	var b strings.Builder
	b.WriteString(s.head + "\n")
	if len(s.orders) > 0 {
		b.WriteString("\norder:\n")
		for _, o := range s.orders {
			b.WriteString("  " + o.text + "\n")
		}
	}
	put := func(sections []section, prefix string, got func(string) []string, matches func(section) bool, names []string) {
		known := map[string]bool{}
		for _, l := range sections {
			known[l.name] = true
			lines := l.lines
			if !matches(l) {
				lines = got(l.name)
			}
			fmt.Fprintf(&b, "\n%s%s:\n", prefix, l.name)
			for _, line := range lines {
				b.WriteString("  " + line + "\n")
			}
		}
		for _, name := range names {
			if !known[name] {
				known[name] = true
				fmt.Fprintf(&b, "\n%s%s:\n  %s\n", prefix, name, strings.Join(got(name), "\n  "))
			}
		}
	}
	var lanes, talkers []string
	for _, e := range all {
		lanes = append(lanes, e.lane)
	}
	for _, e := range all {
		if len(logs[e.lane]) > 0 {
			talkers = append(talkers, e.lane)
		}
	}
	put(s.lanes, "", func(name string) []string { return laneOf(all, name) },
		func(l section) bool { return matchLane(l.lines, all, l.name) }, lanes)
	put(s.logs, "log ", func(name string) []string { return logs[name] },
		func(l section) bool { return match(l.lines, logs[l.name]) }, talkers)
	return b.String()
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		want, got string
		ok        bool
	}{
		{"a|b", "a|b", true},
		{"a|b", "a", false},
		{"a", "a|b", false},
		{"a|? b|c", "a|c", true},
		{"a|? b|c", "a|b|c", true},
		{"a|? b|c", "a|x|c", false},
		{"a…", "abc", true},
		{"a…", "bac", false},
		{"a|…|c", "a|c", true},
		{"a|…|c", "a|x|c|y|c", true},
		{"a|…|c", "a|x", false},
		{"…", "", true},
		{"? a", "", true},
	} {
		split := func(s string) []string {
			if s == "" {
				return nil
			}
			return strings.Split(s, "|")
		}
		if got := match(split(tc.want), split(tc.got)); got != tc.ok {
			t.Errorf("match(%q, %q) = %t", tc.want, tc.got, got)
		}
	}
}

func TestMatchBoth(t *testing.T) {
	want := []string{"started", "stopping", "? hook failed", "completed"}
	for _, tc := range []struct {
		seen, recorded []string
		ok             bool
	}{
		{[]string{"started", "completed"}, []string{"stopping"}, true},
		{[]string{"started", "completed"}, []string{"stopping", "hook failed"}, true},
		{[]string{"started", "completed"}, []string{"hook failed", "stopping"}, false},
		{[]string{"completed", "started"}, []string{"stopping"}, false},
		{[]string{"started", "completed"}, nil, true}, // the record ended early
		{[]string{"started"}, []string{"stopping"}, false},
	} {
		if got := matchBoth(want, tc.seen, tc.recorded, true); got != tc.ok {
			t.Errorf("%q and %q: %t", tc.seen, tc.recorded, got)
		}
	}
}

func TestStory(t *testing.T) {
	s, err := parseStory(`# Prose.
interrupt after: app | up #2
not on containerd: it is too old

order:
  init: completed < app: started #2
pod:
  Running
init:
  started
  completed
app:
  started
  exited with code 1…
  started
log app:
  up
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.acts) != 1 || s.acts[0] != (act{"interrupt", "app | up", 2}) || s.skip["containerd"] != "it is too old" {
		t.Errorf("%+v", s)
	}
	events := []event{{"init", "started", false}, {"app", "started", false}, {"pod", "Running", false}, {"init", "completed", false}, {"app", "exited with code 1: oh", false}, {"app", "started", false}}
	logs := map[string][]string{"app": {"up"}}
	if wrong := s.check(events, logs); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	again, err := parseStory(s.write(events, logs))
	if err != nil || len(again.check(events, logs)) > 0 || again.head != s.head || len(again.lanes) != 3 || again.lanes[2].lines[1] != "exited with code 1…" {
		t.Errorf("written: %v\n%s", err, s.write(events, logs))
	}
	events[3], events[5] = events[5], events[3]
	events = append(events, event{"other", "started", false})
	logs["app"] = append(logs["app"], "down")
	if wrong := s.check(events, logs); len(wrong) != 4 {
		t.Errorf("%q", wrong)
	}
	for _, bad := range []string{"  line", "dance after: x", "nothing", "order:\n  a b"} {
		if _, err := parseStory(bad); err == nil {
			t.Errorf("%q is a story", bad)
		}
	}
}
