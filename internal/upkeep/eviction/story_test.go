package eviction

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/test/golden"
)

// TestStories plays testdata/*.txt: what a node has left over time, then
// "----", then what becomes of it.
//
//	hard|soft|grace|reclaim <signal> <value>   the thresholds
//	transition <time>                          how long conditions outlive their cause
//	layout imagefs|split                       the file systems
//	pod <name> [priority=<n>] [grace=<s>] [critical] [<resource>=<request>/<use>]...
//	    a pod of one container: memory, layer, logs, inodes, pids; emptydir=<limit>/<use>, storage=<limit>
//	at <time> [memory|nodefs|imagefs|inodes|imageinodes|pids=<left>/<all>]...
func TestStories(t *testing.T) { golden.Stories(t, play) }

type world struct {
	hard, soft, grace, reclaim map[string]string
	transition                 time.Duration
	layout                     Layout
	pods                       []*v1.Pod
	figures                    Figures
	out                        strings.Builder
	state                      State
}

func play(t *testing.T, script string) string {
	t.Helper()
	w := &world{hard: map[string]string{}, soft: map[string]string{}, grace: map[string]string{}, reclaim: map[string]string{}, transition: DefaultTransition, figures: Figures{}}
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch words[0] {
		case "hard":
			w.hard[words[1]] = words[2]
		case "soft":
			w.soft[words[1]] = words[2]
		case "grace":
			w.grace[words[1]] = words[2]
		case "reclaim":
			w.reclaim[words[1]] = words[2]
		case "transition":
			w.transition = duration(t, words[1])
		case "layout":
			w.layout = Layout{ImageFs: true, SplitImageFs: words[1] == "split"}
		case "pod":
			w.pod(words[1], words[2:])
		case "at":
			w.at(t, duration(t, words[1]), words[2:])
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return w.out.String()
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func amount(s string) *uint64 {
	q := resource.MustParse(s)
	return ptr.To(uint64(q.Value()))
}

func (w *world) pod(name string, words []string) {
	pod := &v1.Pod{}
	pod.Name, pod.UID = name, types.UID(name)
	c := v1.Container{Name: "app"}
	c.Resources.Requests, c.Resources.Limits = v1.ResourceList{}, v1.ResourceList{}
	st := statsapi.PodStats{PodRef: statsapi.PodReference{UID: name}, EphemeralStorage: &statsapi.FsStats{UsedBytes: new(uint64)}}
	cs := statsapi.ContainerStats{Name: "app", Rootfs: &statsapi.FsStats{}, Logs: &statsapi.FsStats{}}
	for _, word := range words {
		key, text, _ := strings.Cut(word, "=")
		request, used, _ := strings.Cut(text, "/")
		switch key {
		case "unknown":
			st.PodRef.UID = ""
		case "priority":
			n, _ := strconv.Atoi(text)
			pod.Spec.Priority = ptr.To(int32(n))
		case "grace":
			n, _ := strconv.ParseInt(text, 10, 64)
			pod.Spec.TerminationGracePeriodSeconds = &n
		case "critical":
			pod.Spec.Priority = ptr.To[int32](2000000000)
		case "tolerates":
			pod.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists}}
		case "memory":
			if request != "0" {
				c.Resources.Requests[v1.ResourceMemory] = resource.MustParse(request)
			}
			cs.Memory = &statsapi.MemoryStats{WorkingSetBytes: amount(used)}
			st.Memory = cs.Memory
		case "storage":
			c.Resources.Limits[v1.ResourceEphemeralStorage] = resource.MustParse(text)
		case "layer", "logs":
			fs := cs.Rootfs
			if key == "logs" {
				fs = cs.Logs
			}
			if request != "0" {
				c.Resources.Requests[v1.ResourceEphemeralStorage] = resource.MustParse(request)
			}
			fs.UsedBytes = amount(used)
			*st.EphemeralStorage.UsedBytes += *fs.UsedBytes
		case "inodes":
			cs.Rootfs.InodesUsed = amount(text)
		case "pids":
			st.ProcessStats = &statsapi.ProcessStats{ProcessCount: amount(text)}
		case "emptydir":
			limit := resource.MustParse(request)
			pod.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
			st.VolumeStats = []statsapi.VolumeStats{{Name: "data", FsStats: statsapi.FsStats{UsedBytes: amount(used)}}}
			*st.EphemeralStorage.UsedBytes += *amount(used)
		default:
			panic(key)
		}
	}
	pod.Spec.Containers = []v1.Container{c}
	st.Containers = []statsapi.ContainerStats{cs}
	w.pods = append(w.pods, pod)
	w.figures[st.PodRef.UID] = st
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (w *world) at(t *testing.T, at time.Duration, words []string) {
	t.Helper()
	thresholds, err := Parse(w.hard, w.soft, w.grace, w.reclaim)
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Thresholds: thresholds, Transition: w.transition, MaxPodGrace: 20 * time.Second}
	node := &statsapi.NodeStats{Fs: &statsapi.FsStats{}, Runtime: &statsapi.RuntimeStats{ImageFs: &statsapi.FsStats{}}}
	for _, word := range words {
		key, text, _ := strings.Cut(word, "=")
		left, all, _ := strings.Cut(text, "/")
		switch key {
		case "memory":
			node.Memory = &statsapi.MemoryStats{AvailableBytes: amount(left), WorkingSetBytes: ptr.To(*amount(all) - *amount(left))}
		case "nodefs":
			node.Fs.AvailableBytes, node.Fs.CapacityBytes = amount(left), amount(all)
		case "inodes":
			node.Fs.InodesFree, node.Fs.Inodes = amount(left), amount(all)
		case "imagefs":
			node.Runtime.ImageFs.AvailableBytes, node.Runtime.ImageFs.CapacityBytes = amount(left), amount(all)
		case "imageinodes":
			node.Runtime.ImageFs.InodesFree, node.Runtime.ImageFs.Inodes = amount(left), amount(all)
		case "pids":
			a, l := int64(*amount(all)), int64(*amount(left))
			node.Rlimit = &statsapi.RlimitStats{MaxPID: &a, NumOfRunningProcesses: ptr.To(a - l)}
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	var out Output
	w.state, out = Step(p, w.state, epoch.Add(at), node)
	fmt.Fprintf(&w.out, "%-10s %s\n", at, strings.Join(words, " "))
	say := func(format string, args ...any) { fmt.Fprintf(&w.out, "             "+format+"\n", args...) }
	if len(out.Conditions) > 0 {
		say("= %v", out.Conditions)
	}
	for _, pod := range w.pods {
		st := w.figures[string(pod.UID)]
		if e, over := OverLimit(w.layout, pod, &st); over && Limited(pod) {
			say("evict %s in %v: %s", pod.Name, e.Grace, e.Message)
		}
		if reason, message := Admit(out.Conditions, pod); reason != "" {
			say("would not take in %s: %s: %s", pod.Name, reason, message)
		}
	}
	r := out.Reclaim
	if r == nil {
		return
	}
	containers, images := r.Frees(w.layout)
	say("> reclaim %s (containers %v, images %v), relieved: %v", r.Resource, containers, images, Relieved(p, node))
	for i, pod := range Rank(r, w.layout, w.pods, w.figures) {
		if !Evictable(pod) {
			say("%d. %s stays", i+1, pod.Name)
			continue
		}
		e := Of(p, r, pod, w.figures)
		say("%d. %s in %v: %s", i+1, pod.Name, e.Grace, e.Message)
		for _, key := range slices.Sorted(maps.Keys(e.Annotations)) {
			if e.Annotations[key] != "" {
				say("     %s=%s", key, e.Annotations[key])
			}
		}
	}
}

func TestParse(t *testing.T) {
	none := map[string]string{}
	one := func(k, v string) map[string]string { return map[string]string{k: v} }
	for _, c := range []struct {
		name                       string
		hard, soft, grace, reclaim map[string]string
		want                       string
	}{
		{"unknown signal", one("cpu.available", "1"), none, none, none, "unsupported eviction signal cpu.available"},
		{"derived signal", one("containerfs.available", "1Gi"), none, none, none, "unsupported eviction signal containerfs.available"},
		{"nonsense", one("memory.available", "lots"), none, none, none, "eviction threshold of memory.available"},
		{"negative", one("memory.available", "-1"), none, none, none, "negative"},
		{"nothing", one("memory.available", "0"), none, none, none, "not positive"},
		{"percent", one("memory.available", "101%"), none, none, none, "not a percentage"},
		{"percent", one("memory.available", "NaN%"), none, none, none, "not a percentage"},
		{"no grace", none, one("memory.available", "1Gi"), none, none, "grace period must be specified for the soft eviction threshold memory.available"},
		{"bad grace", none, one("memory.available", "1Gi"), one("memory.available", "soon"), none, "invalid eviction grace period"},
		{"grace of nothing", none, none, one("x", "1s"), none, "unsupported eviction signal x"},
		{"reclaim of nothing", none, none, none, one("x", "1s"), "unsupported eviction signal x"},
		{"bad reclaim", none, none, none, one("memory.available", "x"), "eviction minimum reclaim of memory.available"},
	} {
		if _, err := Parse(c.hard, c.soft, c.grace, c.reclaim); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	got, err := Parse(map[string]string{"memory.available": "0%", "pid.available": "100%"}, nil, nil, nil)
	if err != nil || len(got) != 0 {
		t.Errorf("thresholds switched off: %v, %v", got, err)
	}
	if got, err = Parse(DefaultHard, nil, nil, nil); err != nil || len(got) != len(DefaultHard) {
		t.Errorf("the defaults: %v, %v", got, err)
	}
}

// TestContainerLimit: a container may not use what the others leave.
func TestContainerLimit(t *testing.T) {
	limited := func(name string) v1.Container {
		c := v1.Container{Name: name}
		c.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("1Gi")}
		return c
	}
	pod := &v1.Pod{}
	pod.Spec.Containers = []v1.Container{limited("a"), limited("b")}
	pod.Spec.InitContainers = []v1.Container{limited("setup")}
	for _, c := range []struct {
		name   string
		layout Layout
		want   string
	}{
		{"a", Layout{}, `Container a exceeded its local ephemeral storage limit "1Gi". `},
		{"a", Layout{ImageFs: true}, ""}, // the layer is not on the node's file system
		{"setup", Layout{}, ""},          // it has ended
	} {
		st := &statsapi.PodStats{
			EphemeralStorage: &statsapi.FsStats{UsedBytes: amount("1500Mi")},
			Containers:       []statsapi.ContainerStats{{Name: c.name, Rootfs: &statsapi.FsStats{UsedBytes: amount("1500Mi")}, Logs: &statsapi.FsStats{UsedBytes: amount("1Mi")}}},
		}
		if e, _ := OverLimit(c.layout, pod, st); e.Message != c.want {
			t.Errorf("%+v: %q", c, e.Message)
		}
	}
}
