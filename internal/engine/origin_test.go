package engine

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri/fakecri"
)

// What a pod may see is decided by who gave it, whatever its annotations say,
// and its sandbox tells the next node the same.
func TestOrigin(t *testing.T) {
	asked := make(chan Origin, 100)
	b := newBench(t, clock.RealClock{}, func(c *Config, _ *fakecri.Runtime) {
		c.ObjectsOf = func(from Origin) Objects {
			asked <- from
			return noObjects{}
		}
	})
	if err := b.Apply(newPod("nobody's", container("app")), Origin{}); err == nil {
		t.Error("a pod from nowhere was taken")
	}
	if err := b.Apply(newPod("nobody's", container("app")), FromManifests("")); err == nil {
		t.Error("a pod of manifests that are nowhere was taken")
	}
	for _, from := range []Origin{FromAPI(), FromManifests("/manifests")} {
		pod := newPod("web", container("app"))
		pod.Annotations = map[string]string{originMark: "/forged", "example.com/kept": "yes"}
		if err := b.Apply(pod, from); err != nil {
			t.Fatal(err)
		}
		b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
		for len(asked) > 0 {
			if got := <-asked; got != from {
				t.Errorf("objects of %+v were asked for, want %+v", got, from)
			}
		}
		list, err := b.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(list.Items) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		if s := list.Items[0]; OriginOf(s) != from || s.Annotations["example.com/kept"] != "yes" {
			t.Errorf("the sandbox of a pod of %+v has %v", from, s.Annotations)
		}
		b.Delete(pod.UID, new(time.Duration))
		b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
	}
}
