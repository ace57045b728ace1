package play

import (
	"cmp"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"unipod.dev/unipod/internal/engine"
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

// tally knows how each pod of a play stands, and when the play is over.
type tally struct {
	order []types.UID
	pods  map[types.UID]*v1.Pod
	retry bool
	gave  string // why the play gave up
}

func newTally(pods []*v1.Pod, retry bool) *tally {
	t := &tally{pods: map[types.UID]*v1.Pod{}, retry: retry}
	for _, p := range pods {
		t.order = append(t.order, p.UID)
		t.pods[p.UID] = p
	}
	return t
}

func (t *tally) knows(uid types.UID) bool { return t.pods[uid] != nil }

func (t *tally) status(pod *v1.Pod) {
	t.pods[pod.UID] = pod
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

func (t *tally) record(ev engine.Event) {
	r := ev.Record
	if t.retry || t.gave != "" || r == nil || r.Type != v1.EventTypeWarning || !hopelessRecords[r.Reason] {
		return
	}
	if ran(t.pods[ev.Pod.UID]) {
		return
	}
	t.gave = fmt.Sprintf("Giving up: pod %s can't start (%s)", ev.Pod.Name, r.Reason)
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
	for _, pod := range t.pods {
		if _, final := Outcome(pod); !final {
			return "", false
		}
	}
	return "", true
}

// code is that of the first pod of the play that failed, 1 when one couldn't
// start, else 0.
func (t *tally) code() int {
	for _, uid := range t.order {
		if code, _ := Outcome(t.pods[uid]); code != 0 {
			return code
		}
	}
	if t.gave != "" {
		return 1
	}
	return 0
}
