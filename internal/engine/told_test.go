package engine

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri/fakecri"
)

// A deleted pod's exit code is in the runtime until the API has it: an engine
// that is killed in between leaves it for the next. A pod that the API has no
// more waits for nobody.
func TestExitCodeIsKeptUntilTold(t *testing.T) {
	var rt *fakecri.Runtime
	var first Config
	asked := newPod("asked", container("app"))
	asked.Spec.TerminationGracePeriodSeconds = ptr.To[int64](5)
	var running v1.PodStatus
	end := func(pod *v1.Pod, status v1.PodStatus) *v1.Pod {
		pod = pod.DeepCopy()
		at := metav1.NewTime(time.Now().Add(5 * time.Second))
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds, pod.Status = &at, ptr.To[int64](5), status
		return pod
	}
	ended := func(b *bench, uid PodUID) func() bool {
		return func() bool { return b.phase(uid) == v1.PodFailed }
	}
	left := func() int {
		t.Helper()
		list, err := rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Containers)
	}
	code := func(b *bench, uid PodUID) {
		t.Helper()
		if s := b.statusOf(uid, "app").State.Terminated; s == nil || s.ExitCode != 7 || s.Reason != "Error" {
			t.Errorf("it ended with %+v, want exit code 7", s)
		}
	}
	t.Run("killed", func(t *testing.T) {
		b := newBench(t, clock.RealClock{}, func(cfg *Config, r *fakecri.Runtime) {
			r.Scripts["app"] = []fakecri.Run{{StopCode: 7}}
			rt, first = r, *cfg
		})
		dropped := newPod("dropped", container("app"))
		for _, p := range []*v1.Pod{asked, dropped} {
			b.apply(p)
			b.await("running", func() bool { return b.phase(p.UID) == v1.PodRunning })
		}
		b.Delete(dropped.UID, nil)
		b.await("the end of a pod the API has no more", func() bool { return b.phase(dropped.UID) == "gone" })
		p, _ := b.Get(asked.UID)
		running = p.Status
		b.apply(end(asked, running))
		b.await("the end", ended(b, asked.UID))
		code(b, asked.UID)
		for range 3 { // whatever makes it look again
			b.RefreshVolumes(asked.UID)
			b.apply(end(asked, running))
		}
		time.Sleep(20 * time.Millisecond) // for what must not happen
		if left() != 1 || b.phase(asked.UID) == "gone" {
			t.Errorf("%d containers are left, and nobody was told", left())
		}
	})
	t.Run("the next", func(t *testing.T) {
		b := newBench(t, clock.RealClock{}, func(cfg *Config, _ *fakecri.Runtime) {
			cfg.CRI, cfg.Dir, cfg.LogDir = first.CRI, first.Dir, first.LogDir
		})
		b.apply(end(asked, running)) // which is all the API knows
		b.await("the end", ended(b, asked.UID))
		code(b, asked.UID)
		p, _ := b.Get(asked.UID)
		b.apply(end(asked, p.Status))
		b.await("its removal", func() bool { return b.phase(asked.UID) == "gone" })
		if left() != 0 {
			t.Errorf("%d containers are left", left())
		}
	})
}
