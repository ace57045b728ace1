package scenario

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"unipod.dev/unipod/internal/anatomy"
	"unipod.dev/unipod/internal/timeline"
)

var update = flag.Bool("update", false, "write what really happened into the stories that don't match")

// giveUp is when a play is interrupted though not all its pods have shown what
// was waited for: the test has failed then, and shall say why.
const giveUp = 100 * time.Second

type scenario struct {
	name string
	file string
	*story
}

// load reads the scenarios that the runtime can run.
func load(t *testing.T, runtime string) []scenario {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	var all []scenario
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		text, err := os.ReadFile("testdata/" + name + ".story")
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseStory(string(text))
		if err != nil {
			t.Fatalf("%s.story: %v", name, err)
		}
		if why := s.skip[runtime]; why != "" {
			t.Run(name, func(t *testing.T) { t.Skip(why) })
			continue
		}
		all = append(all, scenario{name, file, s})
	}
	return all
}

// TestScenarios plays all scenarios at once: those that end by themselves in
// one play, those that are interrupted in another.
func TestScenarios(t *testing.T) {
	m := newMachine(t)
	runtime := m.runtime(writeImage(t, m.Dir))
	if runtime == "unipod" {
		serve := m.Start("serve", "--manifests", filepath.Join(m.Dir, "manifests"))
		serve.Says("serving the Kubernetes API")
	}
	var ending, interrupted []scenario
	for _, s := range load(t, runtime) {
		if s.interrupted() {
			interrupted = append(interrupted, s)
		} else {
			ending = append(ending, s)
		}
	}
	var wg sync.WaitGroup
	results := make([]*result, 2)
	for i, group := range [][]scenario{ending, interrupted} {
		wg.Go(func() { results[i] = m.play(group) })
	}
	wg.Wait()
	for i, group := range [][]scenario{ending, interrupted} {
		for _, s := range group {
			t.Run(s.name, func(t *testing.T) { results[i].check(t, s) })
		}
	}
	// A record may be late for the end of its pod's story, but not all of them.
	reasons := map[string]bool{}
	for _, r := range results {
		for _, life := range r.lives {
			for _, e := range life.Entries {
				if e.Recorded {
					reasons[e.Event] = true
				}
			}
		}
	}
	for _, reason := range []string{"Killing", "Unhealthy", "Pulled"} {
		if !reasons[reason] {
			t.Errorf("no pod has a record of %s", reason)
		}
	}
}

func (s *story) interrupted() bool {
	for _, a := range s.acts {
		if a.what == "interrupt" {
			return true
		}
	}
	return false
}

// result is what came of a play.
type result struct {
	lives map[string]timeline.Timeline
	logs  map[string][]string // by "pod/container"
	late  map[string]string   // scenarios that never showed what was waited for
}

// aLine is a line of a play: about a pod or a container, what it says or what
// is said of it.
var aLine = regexp.MustCompile(`^([a-z0-9-]+)(?:/([a-z0-9-]+))? +([|·]) (.*)$`)

// of cuts the pod's name from a line about it: "container | text".
func of(pod, line string) (rest string, ok bool) {
	f := aLine.FindStringSubmatch(line)
	if f == nil || f[1] != pod {
		return "", false
	}
	return strings.TrimSpace(f[2] + " " + f[3] + " " + f[4]), true
}

// play plays scenarios to their end.
func (m *machine) play(group []scenario) *result {
	args := []string{"play", "--retry", "-o", "json"}
	for _, s := range group {
		args = append(args, s.file)
	}
	p := m.StartApart(args...)
	r := &result{lives: map[string]timeline.Timeline{}, logs: map[string][]string{}, late: map[string]string{}}
	interrupt := sync.OnceFunc(func() { p.Signal(syscall.SIGINT) })
	timer := time.AfterFunc(giveUp, interrupt)
	defer timer.Stop()
	var shown sync.WaitGroup
	var mu sync.Mutex
	waits := false
	for _, s := range group {
		for _, a := range s.acts {
			waits = waits || a.what == "interrupt"
			shown.Go(func() {
				if !p.Until(func(line string) bool {
					rest, ok := of(s.name, line)
					return ok && strings.Contains(rest, a.after)
				}, a.times) {
					mu.Lock()
					defer mu.Unlock()
					r.late[s.name] = a.after
					return
				}
				if a.what == "kill pause" {
					m.killPause(s.name)
				}
			})
		}
	}
	if waits {
		go func() {
			shown.Wait()
			interrupt()
		}()
	}
	p.Code()
	shown.Wait()
	var lives []timeline.Timeline
	if err := json.Unmarshal(p.Output(), &lives); err != nil {
		m.T.Errorf("the play's timelines: %v\n%s", err, p.Output())
	}
	for _, l := range lives {
		r.lives[l.Name] = l
	}
	for _, line := range p.Lines() {
		if f := aLine.FindStringSubmatch(line); f != nil && f[3] == "|" {
			key := f[1] + "/" + f[2]
			r.logs[key] = append(r.logs[key], strings.TrimSpace(f[4]))
		}
	}
	return r
}

// killPause kills the parent of all that is in a pod.
func (m *machine) killPause(name string) {
	var pod anatomy.Pod
	if err := m.Get(&pod, "anatomy", name, "-o", "json"); err != nil {
		m.T.Error(err)
		return
	}
	if pod.Pause == nil {
		m.T.Errorf("%s has no pause", name)
		return
	}
	if err := syscall.Kill(pod.Pause.PID, syscall.SIGKILL); err != nil {
		m.T.Errorf("killing the pause of %s: %v", name, err)
	}
}

// check compares one pod's life with its story.
func (r *result) check(t *testing.T, s scenario) {
	if text, ok := r.late[s.name]; ok {
		t.Errorf("it never said %q", text)
	}
	life, ok := r.lives[s.name]
	if !ok {
		t.Fatal("the play tells nothing of it")
	}
	events := eventsOf(&life)
	logs := map[string][]string{}
	for _, c := range life.Containers {
		logs[c.Name] = r.logs[s.name+"/"+c.Name]
	}
	wrong := s.check(events, logs)
	if len(wrong) == 0 {
		return
	}
	if *update {
		if err := os.WriteFile("testdata/"+s.name+".story", []byte(s.write(events, logs)), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	var whole strings.Builder
	if err := life.Write(&whole, false); err != nil {
		t.Fatal(err)
	}
	t.Errorf("%s\n\n%s", strings.Join(wrong, "\n\n"), whole.String())
	for name, lines := range logs {
		t.Logf("log %s:\n  %s", name, strings.Join(lines, "\n  "))
	}
}
