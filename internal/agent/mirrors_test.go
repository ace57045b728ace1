package agent

import (
	"maps"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/engine"
)

// ofManifests are the objects of the node's own manifests: any Secret there
// could be.
type ofManifests struct{ engine.Objects }

func (ofManifests) Secret(_, name string) (*v1.Secret, error) {
	return &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"word": []byte("of the machine")}}, nil
}

func static(l *lab, uid, name string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: name, UID: types.UID(uid), Annotations: map[string]string{
			kubetypes.ConfigSourceAnnotationKey: kubetypes.FileSource, kubetypes.ConfigHashAnnotationKey: uid,
		}},
		Spec: v1.PodSpec{
			RestartPolicy: v1.RestartPolicyAlways, TerminationGracePeriodSeconds: ptr.To[int64](1), DNSPolicy: v1.DNSClusterFirst,
			EnableServiceLinks: ptr.To(true), SecurityContext: &v1.PodSecurityContext{}, SchedulerName: "default-scheduler",
			Containers: []v1.Container{{
				Name: "main", Image: "img", ImagePullPolicy: v1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log",
				TerminationMessagePolicy: v1.TerminationMessageReadFile,
			}},
		},
	}
}

func TestMirror(t *testing.T) {
	l := newLab(t, nil)
	if err := l.engine.Apply(static(l, "aaaa", "static"), engine.FromManifests("/manifests")); err != nil {
		t.Fatal(err)
	}
	first := l.await("static", "ready", isReady)
	if first.Annotations[v1.MirrorPodAnnotationKey] != "aaaa" || len(first.OwnerReferences) != 1 || first.OwnerReferences[0].Kind != "Node" || first.UID == "aaaa" {
		t.Errorf("mirror: %+v", first.ObjectMeta)
	}
	// The API can't end it: its mirror comes back.
	if err := api.CoreV1().Pods(l.ns).Delete(t.Context(), "static", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("static", "there anew", func(p *v1.Pod) bool { return p.UID != first.UID && isReady(p) })
	if got, ok := l.engine.Get("aaaa"); !ok || got.DeletionTimestamp != nil {
		t.Error("the static pod itself was deleted")
	}
	// A mirror that shows nothing goes.
	stray := static(l, "bbbb", "stray")
	stray.UID = ""
	stray.Spec.NodeName = l.node
	stray.Annotations[v1.MirrorPodAnnotationKey] = "bbbb"
	if _, err := api.CoreV1().Pods(l.ns).Create(t.Context(), stray, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("stray", "gone", nil)
	l.engine.Delete("aaaa", nil)
	l.await("static", "gone", nil)
}

// A node that starts anew has its static pods back before it is told of them:
// their mirrors stay.
func TestMirrorKept(t *testing.T) {
	l := newLab(t, nil)
	if err := l.engine.Apply(static(l, "aaaa", "static"), engine.FromManifests("/manifests")); err != nil {
		t.Fatal(err)
	}
	first := l.await("static", "ready", isReady)
	m := l.agent.mirrors
	name := nameOf(first)
	m.mu.Lock()
	told := m.wanted[name]
	delete(m.wanted, name)
	m.mu.Unlock()
	if err := m.reconcile(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if now := l.get("static"); now == nil || now.UID != first.UID {
		t.Errorf("the mirror of a pod that the engine has was removed: %v", now)
	}
	m.want(told)
	l.engine.Delete("aaaa", nil)
	l.await("static", "gone", nil)
}

// A machine that shuts down ends static pods too. They are back with the next
// start, and their mirrors say so.
func TestMirrorAfterShutdown(t *testing.T) {
	l := newLab(t, nil)
	if err := l.engine.Apply(static(l, "aaaa", "static"), engine.FromManifests("/manifests")); err != nil {
		t.Fatal(err)
	}
	mirror := l.await("static", "ready", isReady)
	l.end()
	mirror.Status.Phase, mirror.Status.Reason, mirror.Status.Message = v1.PodFailed, "Terminated", "Pod was terminated in response to imminent node shutdown."
	mirror.Status.Conditions = append(mirror.Status.Conditions, v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet})
	if _, err := api.CoreV1().Pods(l.ns).UpdateStatus(t.Context(), mirror, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.start()
	if err := l.engine.Apply(static(l, "aaaa", "static"), engine.FromManifests("/manifests")); err != nil {
		t.Fatal(err)
	}
	now := l.await("static", "running again", isReady)
	if _, c := podutil.GetPodCondition(&now.Status, v1.DisruptionTarget); now.Status.Reason != "" || now.Status.Message != "" || c != nil {
		t.Errorf("of its earlier life is left: %q %q %v", now.Status.Reason, now.Status.Message, c)
	}
	l.engine.Delete("aaaa", nil)
	l.await("static", "gone", nil)
}

// askSecret has a container ask for a Secret that only manifests have.
func askSecret(p *v1.Pod) {
	p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "WORD", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{
		LocalObjectReference: v1.LocalObjectReference{Name: "machine"}, Key: "word"}}}}
}

// An author of the API can't pass a pod off as one of the node's own manifests,
// whose pods may see Secrets that aren't the API's: not by its annotations, not
// over a restart of the node, and not as a mirror.
func TestForgedOrigin(t *testing.T) {
	l := newLab(t, nil)
	forged := map[string]string{
		"unipod.dev/manifests": "/manifests", kubetypes.ConfigSourceAnnotationKey: kubetypes.FileSource, "example.com/kept": "yes",
	}
	pod := l.pod("web", func(p *v1.Pod) {
		p.Annotations = forged
		askSecret(p)
	})
	mirror := static(l, "bbbb", "mirror")
	mirror.UID, mirror.Spec.NodeName = "", l.node
	maps.Copy(mirror.Annotations, forged)
	mirror.Annotations[v1.MirrorPodAnnotationKey] = "bbbb"
	mirror, err := api.CoreV1().Pods(l.ns).Create(t.Context(), mirror, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	refused := func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	}
	check := func(life string) {
		t.Helper()
		l.await("web", "refused", refused)
		// The API may still say what an earlier life found.
		l.eventually("the engine's pod is refused", func() bool {
			got, ok := l.engine.Get(pod.UID)
			return ok && refused(got)
		})
		got, ok := l.engine.Get(pod.UID)
		if !ok || kubetypes.IsStaticPod(got) || got.Annotations["example.com/kept"] != "yes" {
			t.Errorf("%s, the engine's pod: %+v", life, got)
		}
		if _, ok := l.engine.Get(mirror.UID); ok {
			t.Errorf("%s, a mirror is a pod", life)
		}
		list, err := l.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			if source, ok := engine.OriginOf(s).Manifests(); ok {
				t.Errorf("%s, the sandbox of %s says that it is one of %s", life, s.Metadata.Name, source)
			}
		}
	}
	check("first")
	// Nor does it come in under the name of a pod that is there.
	if err := l.engine.Apply(static(l, string(pod.UID), "web"), engine.FromManifests("/manifests")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a pod of another origin with its UID: %v", err)
	}
	l.end()
	l.start()
	check("second")
	// One of the manifests does see it. (It has no mirror: the API lets none
	// refer to Secrets.)
	own := static(l, "aaaa", "own")
	askSecret(own)
	if err := l.engine.Apply(own, engine.FromManifests("/manifests")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got, ok := l.engine.Get("aaaa")
		if ok && isReady(got) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the manifests' own pod: %+v", got.Status)
		}
	}
}
