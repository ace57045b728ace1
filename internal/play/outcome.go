package play

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"unipod.dev/unipod/internal/timeline"
)

// Outcome is the exit code that a pod in a final phase stands for: 0 when it
// succeeded, the code of the container that failed first when one did, and 1
// when the pod failed for another reason (a deadline, an eviction).
func Outcome(pod *v1.Pod) (code int, final bool) {
	switch pod.Status.Phase {
	case v1.PodSucceeded:
		return 0, true
	case v1.PodFailed:
	default:
		return 0, false
	}
	if pod.Status.Reason != "" { // DeadlineExceeded, Evicted: not a container's doing
		return 1, true
	}
	sidecar := map[string]bool{}
	for _, c := range pod.Spec.InitContainers {
		sidecar[c.Name] = c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
	}
	var failed []*v1.ContainerStateTerminated
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 && !sidecar[s.Name] {
			failed = append(failed, t)
		}
	}
	if len(failed) == 0 {
		return 1, true
	}
	first := slices.MinFunc(failed, func(a, b *v1.ContainerStateTerminated) int {
		return cmp.Or(a.FinishedAt.Compare(b.FinishedAt.Time))
	})
	return int(first.ExitCode), true
}

// hopeless are the reasons for which a container waits that no waiting heals
// while the manifest and the images stay as they are.
var hopeless = map[string]bool{
	"ErrImagePull":               true,
	"ImagePullBackOff":           true,
	"InvalidImageName":           true,
	"ErrImageNeverPull":          true,
	"ImageInspectError":          true,
	"SignatureValidationFailed":  true,
	"CreateContainerConfigError": true,
	"CreateContainerError":       true,
	"RunContainerError":          true,
	"PreCreateHookError":         true,
}

// hopelessRecords are the same for what is no container's state.
var hopelessRecords = map[string]bool{
	"FailedCreatePodSandBox": true,
	"FailedMount":            true,
	"FailedValidation":       true,
	"FailedToCreatePod":      true,
}

// rootCA is what a controller puts into every namespace, and every pod with an
// account's token mounts.
const rootCA = `"kube-root-ca.crt" not found`

// tally knows how each pod of a play stands, and when the play is over.
type tally struct {
	runners []Runner
	order   []types.UID // of the pods, as they came
	pods    map[types.UID]*v1.Pod
	of      map[types.UID]string // the runner's key
	gone    map[types.UID]bool
	jobs    map[string]bool // that have ended: whether they failed
	retry   bool
	gave    string // why the play gave up
}

func newTally(runners []Runner, retry bool) *tally {
	return &tally{
		runners: runners, retry: retry, pods: map[types.UID]*v1.Pod{}, of: map[types.UID]string{},
		gone: map[types.UID]bool{}, jobs: map[string]bool{},
	}
}

// living counts the pods that are there.
func (t *tally) living() int { return len(t.pods) - len(t.gone) }

func (t *tally) status(of string, pod *v1.Pod) {
	if t.pods[pod.UID] == nil {
		t.order = append(t.order, pod.UID)
		t.of[pod.UID] = of
	}
	t.pods[pod.UID] = pod
}

// judge gives up where there is no hope for a pod.
func (t *tally) judge(pod *v1.Pod) {
	if t.retry || t.gave != "" {
		return
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		w := s.State.Waiting
		// A container that has run before is restarted as Kubernetes does.
		if w == nil || !hopeless[w.Reason] || s.RestartCount > 0 || s.LastTerminationState.Terminated != nil {
			continue
		}
		t.gave = fmt.Sprintf("Giving up: container %s of pod %s can't start (%s)", s.Name, pod.Name, w.Reason)
		return
	}
}

// removed takes a pod that is gone.
func (t *tally) removed(pod *v1.Pod) {
	if t.pods[pod.UID] != nil {
		t.gone[pod.UID] = true
	}
}

func (t *tally) record(pod *v1.Pod, r *timeline.Record) {
	if t.retry || t.gave != "" || r == nil || r.Type != v1.EventTypeWarning || !hopelessRecords[r.Reason] {
		return
	}
	if known := t.pods[pod.UID]; known != nil && ran(known) {
		return
	}
	if strings.Contains(r.Message, rootCA) {
		return // not the manifest's to bring: it comes a moment after the namespace
	}
	t.gave = fmt.Sprintf("Giving up: pod %s can't start (%s)", pod.Name, r.Reason)
}

// ran reports whether a container of the pod has ever run.
func ran(pod *v1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses), func(s v1.ContainerStatus) bool {
		return s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil
	})
}

// over reports whether the play has nothing to wait for, and the words for it
// when there is something to say.
func (t *tally) over() (why string, over bool) {
	if t.gave != "" {
		return t.gave + "; --retry keeps trying, as kubelet does", true
	}
	for _, r := range t.runners {
		if !t.ended(r) {
			return "", false
		}
	}
	return "", true
}

// ended tells whether a runner has, and will not go on.
func (t *tally) ended(r Runner) bool {
	if r.Job {
		_, ended := t.jobs[r.Key]
		return ended
	}
	if !r.Pod {
		return false
	}
	for uid, pod := range t.pods {
		if t.of[uid] == r.Key {
			_, final := Outcome(pod)
			return final || t.gone[uid]
		}
	}
	return false
}

// code is that of the first object of the play that failed, 1 when a pod
// couldn't start, else 0. A Job counts as its pods when it has failed.
func (t *tally) code() int {
	for _, r := range t.runners {
		failed, ended := t.jobs[r.Key]
		if r.Job && ended && !failed || !r.Pod && !r.Job {
			continue // what it tried again doesn't count
		}
		for _, uid := range t.order {
			if t.of[uid] != r.Key {
				continue
			}
			if code, _ := Outcome(t.pods[uid]); code != 0 {
				return code
			}
		}
		if failed {
			return 1
		}
	}
	if t.gave != "" {
		return 1
	}
	return 0
}
