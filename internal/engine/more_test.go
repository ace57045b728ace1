package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri/fakecri"
	"unipod.dev/unipod/internal/podspec"
)

func TestRuntimeWithoutEvents(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(_ *Config, rt *fakecri.Runtime) { rt.NoEvents = true })
	pod := newPod("polled", container("app"))
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	b.rt.Exit("app", 1, "")
	b.await("the restart", func() bool { return b.statusOf(pod.UID, "app").RestartCount == 1 })
}

func TestSandboxDies(t *testing.T) {
	b := newBench(t, clock.RealClock{}, nil)
	pod := newPod("reborn", container("app"))
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	first, _ := b.Get(pod.UID)
	b.rt.KillSandboxes()
	b.await("the new sandbox", func() bool {
		got, _ := b.Get(pod.UID)
		return got.Status.PodIP != "" && got.Status.PodIP != first.Status.PodIP && b.statusOf(pod.UID, "app").Ready
	})
	if !b.has("SandboxChanged: Pod sandbox changed, it will be killed and re-created.") {
		t.Error("the change is not on record")
	}
	if n := b.statusOf(pod.UID, "app").RestartCount; n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
}

func TestSecondDeleteIsFaster(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(_ *Config, rt *fakecri.Runtime) {
		rt.Scripts["app"] = []fakecri.Run{{Deaf: true}}
	})
	pod := newPod("deaf", container("app"))
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	b.Delete(pod.UID, ptr.To(time.Hour))
	b.await("the stop", func() bool { return slices.Contains(b.rt.Calls(), "StopContainer app/0 1h0m0s") })
	if got, _ := b.Get(pod.UID); got.DeletionTimestamp == nil || *got.DeletionGracePeriodSeconds != 3600 {
		t.Errorf("deletion is not shown: %v", got.DeletionGracePeriodSeconds)
	}
	b.Delete(pod.UID, ptr.To(2*time.Hour)) // longer: without effect
	b.Delete(pod.UID, ptr.To(time.Duration(0)))
	b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
}

func TestKeepLogs(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(c *Config, _ *fakecri.Runtime) { c.KeepLogs = true })
	pod := newPod("kept", container("app"))
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	log := filepath.Join(podspec.LogDirectory(b.cfg.LogDir, pod), "app", "0.log")
	if err := os.WriteFile(log, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	b.Delete(pod.UID, nil)
	b.await("removal", func() bool { return b.phase(pod.UID) == "gone" })
	if _, err := os.Stat(log); err != nil {
		t.Error(err)
	}
}

func TestUserNamespaces(t *testing.T) {
	dir := t.TempDir()
	u := &userNamespaces{dir: dir}
	seen := map[uint32]bool{}
	for i := range 5 {
		m, err := u.get(PodUID(fmt.Sprint("p", i)))
		if err != nil {
			t.Fatal(err)
		}
		host := m.Uids[0].HostId
		if seen[host] || host < idsPerPod || host%idsPerPod != 0 || m.Uids[0].Length != idsPerPod {
			t.Errorf("range of p%d: %v", i, m.Uids[0])
		}
		seen[host] = true
	}
	// A new engine knows them, and what is released is free again.
	u = &userNamespaces{dir: dir}
	again, err := u.get("p3")
	if err != nil || !seen[again.Uids[0].HostId] {
		t.Errorf("p3 again: %v, %v", again, err)
	}
	if err := u.release("p3"); err != nil {
		t.Fatal(err)
	}
	next, err := u.get("p9")
	if err != nil || next.Uids[0].HostId != again.Uids[0].HostId {
		t.Errorf("after the release: %v, %v", next, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "p0", "userns"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	u = &userNamespaces{dir: dir}
	if _, err := u.get("p10"); err == nil {
		t.Error("a damaged record goes unnoticed: two pods might share a range")
	}
}

// secrets is an Objects with secrets only.
type secretObjects map[string]*v1.Secret

func (s secretObjects) ConfigMap(_, name string) (*v1.ConfigMap, error) {
	return noObjects{}.ConfigMap("", name)
}

func (s secretObjects) Secret(_, name string) (*v1.Secret, error) {
	if secret := s[name]; secret != nil {
		return secret, nil
	}
	return nil, apierrors.NewNotFound(v1.Resource("secret"), name)
}

func TestPullSecrets(t *testing.T) {
	objects := secretObjects{"login": {
		ObjectMeta: metav1.ObjectMeta{Name: "login"}, Type: v1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"registry.test":{"username":"me","password":"pw"},"other.test":{"username":"you","password":"pw"}}}`)},
	}}
	pod := newPod("private", container("app"))
	pod.Spec.ImagePullSecrets = []v1.LocalObjectReference{{Name: "login"}, {Name: "none"}}
	auths, missing, err := credentials(objects, pod, "registry.test/app:1")
	if err != nil || len(auths) != 1 || auths[0].Username != "me" || !slices.Equal(missing, []string{"none"}) {
		t.Errorf("%d credentials, missing %v, %v", len(auths), missing, err)
	}
	if auths, _, err := credentials(objects, pod, "elsewhere.test/app:1"); err != nil || len(auths) != 0 {
		t.Errorf("elsewhere: %d credentials, %v", len(auths), err)
	}
}

func TestRuntimeClass(t *testing.T) {
	b := newBench(t, clock.RealClock{}, func(c *Config, _ *fakecri.Runtime) {
		c.RuntimeHandler = func(class string) (string, error) {
			switch class {
			case "mine":
				return "unipod", nil
			case "broken":
				return "", errors.New("no answer")
			}
			return "", apierrors.NewNotFound(nodev1.Resource("runtimeclass"), class)
		}
	})
	for class, want := range map[string]string{
		"other":  `Failed to create pod sandbox: runtimeclass.node.k8s.io "other" not found`,
		"broken": `Failed to create pod sandbox: failed to lookup RuntimeClass broken: no answer`,
	} {
		pod := newPod(class, container("app"))
		pod.Spec.RuntimeClassName = &class
		b.apply(pod)
		b.await(want, func() bool { return b.has("FailedCreatePodSandBox: " + want) })
	}
	b.rt.Calls()
	pod := newPod("mine", container("app"))
	pod.Spec.RuntimeClassName = ptr.To("mine")
	b.apply(pod)
	b.await("Running", func() bool { return b.phase(pod.UID) == v1.PodRunning })
	if calls := b.rt.Calls(); !slices.Contains(calls, "RunPodSandbox mine/0 by unipod") {
		t.Errorf("calls %q", calls)
	}
}

// TestRejected: what the node doesn't take in never reaches the runtime; what
// it took in once is asked about no more.
func TestRejected(t *testing.T) {
	full := atomic.Bool{}
	b := newBench(t, clock.RealClock{}, func(c *Config, _ *fakecri.Runtime) {
		c.Admit = func(*v1.Pod) (string, string) {
			if full.Load() {
				return "Full", "no room"
			}
			return "", ""
		}
	})
	first := newPod("first", container("app"))
	b.apply(first)
	b.await("Running", func() bool { return b.phase(first.UID) == v1.PodRunning })
	b.rt.Calls()
	full.Store(true)
	second := newPod("second", container("app"))
	b.apply(second)
	b.await("its refusal", func() bool { return b.phase(second.UID) == v1.PodFailed })
	b.await("its record", func() bool { return b.has("Full: no room") })
	got, _ := b.Get(second.UID)
	if got.Status.Reason != "Full" || got.Status.Message != "Pod was rejected: no room" {
		t.Errorf("%+v", got.Status)
	}
	first.Labels = map[string]string{"new": "label"}
	b.apply(first)
	b.Delete(second.UID, nil)
	b.await("its removal", func() bool { return b.phase(second.UID) == "gone" })
	if calls := b.rt.Calls(); len(calls) != 0 || b.phase(first.UID) != v1.PodRunning {
		t.Errorf("calls %q, the first is %s", calls, b.phase(first.UID))
	}
}
