package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri/fakecri"
)

func TestLife(t *testing.T) {
	l := newLab(t, nil)
	created := l.pod("web", nil)
	pod := l.await("web", "ready", isReady)
	if pod.Status.HostIP != "192.0.2.1" || pod.Status.StartTime == nil || len(pod.Status.ContainerStatuses) != 1 || pod.Status.QOSClass != v1.PodQOSBestEffort {
		t.Errorf("status: %+v", pod.Status)
	}
	l.eventually("the Started event", func() bool {
		return l.event(created.UID, "Started", "spec.containers{main}", "Container started")
	})
	if err := api.CoreV1().Pods(l.ns).Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("web", "gone", nil)
	l.eventually("the engine's pod is gone", func() bool { return len(l.engine.List()) == 0 })
}

// What others write to a status stays, and a readiness gate is heeded.
func TestReadinessGate(t *testing.T) {
	l := newLab(t, nil)
	const gate = "example.com/gate"
	l.pod("web", func(p *v1.Pod) { p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: gate}} })
	l.await("web", "held back", func(p *v1.Pod) bool {
		_, c := podutil.GetPodCondition(&p.Status, v1.PodReady)
		return c != nil && c.Reason == "ReadinessGatesNotReady"
	})
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"True"}]}}`, gate)
	if _, err := api.CoreV1().Pods(l.ns).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	pod := l.await("web", "ready", isReady)
	if _, c := podutil.GetPodCondition(&pod.Status, gate); c == nil || c.Status != v1.ConditionTrue {
		t.Errorf("the gate's condition is lost: %+v", pod.Status.Conditions)
	}
}

func TestAdmission(t *testing.T) {
	l := newLab(t, nil)
	port := func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
	}
	l.pod("first", port)
	l.await("first", "ready", isReady)
	for name, tc := range map[string]struct {
		set             func(*v1.Pod)
		reason, message string
	}{
		"cpu": {func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("10000")}
		}, "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 10000000"},
		"selector": {func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, "NodeAffinity", "Predicate NodeAffinity failed"},
		"port":     {port, "NodePorts", "Predicate NodePorts failed"},
	} {
		pod := l.pod(name, tc.set)
		got := l.await(name, "failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
		if got.Status.Reason != tc.reason || !strings.Contains(got.Status.Message, tc.message) {
			t.Errorf("%s: %s: %s", name, got.Status.Reason, got.Status.Message)
		}
		l.eventually("the event", func() bool { return l.event(pod.UID, tc.reason, "", "") })
		if err := api.CoreV1().Pods(l.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		l.await(name, "gone", nil)
	}
}

// A pod waits for a ConfigMap, and starts when it comes.
func TestLateConfigMap(t *testing.T) {
	l := newLab(t, nil)
	l.pod("web", func(p *v1.Pod) {
		p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "late"}}}}
	})
	l.await("web", "waiting", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	if _, err := api.CoreV1().ConfigMaps(l.ns).Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string]string{"A": "b"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("web", "ready", isReady)
}

// What happened while the node's process was away is told afterwards, and
// what it counted goes on.
func TestRestart(t *testing.T) {
	l := newLab(t, func(rt *fakecri.Runtime) {
		rt.Scripts["main"] = []fakecri.Run{{ExitAfter: 50 * time.Millisecond, Code: 3}, {}}
	})
	l.pod("crash", nil)
	l.pod("deleted", func(p *v1.Pod) { p.Spec.Containers[0].Name = "other" })
	l.await("crash", "restarted", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p)
	})
	before := l.await("deleted", "ready", isReady)
	l.end()
	if err := api.CoreV1().Pods(l.ns).Delete(t.Context(), "deleted", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.await("deleted", "gone", nil)
	pod := l.await("crash", "ready", isReady)
	if c := pod.Status.ContainerStatuses[0]; c.RestartCount != 1 {
		t.Errorf("restarts: %+v", c)
	}
	if before.Status.StartTime == nil {
		t.Error("no start time")
	}
}

func (l *lab) configMap(name string, data map[string]string) {
	l.t.Helper()
	m := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := api.CoreV1().ConfigMaps(l.ns).Create(l.t.Context(), m, metav1.CreateOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("tmpfs volumes need root")
	}
}

// file reads a file of a pod's volume.
func (l *lab) file(uid types.UID, plugin, volume, name string) string {
	text, _ := os.ReadFile(filepath.Join(l.dir, "pods", string(uid), "volumes", "kubernetes.io~"+plugin, volume, name))
	return string(text)
}

// The volume every pod gets by admission: a token bound to the pod, the
// authority's certificate, the namespace; and a ConfigMap that changes.
func TestVolumes(t *testing.T) {
	needRoot(t)
	l := newLab(t, nil)
	l.configMap("settings", map[string]string{"a": "1"})
	pod := l.pod("web", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{
			{Name: "access", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
				{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](3607)}},
			}}}},
			{Name: "settings", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "settings"}}}},
		}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "access", MountPath: "/access"}, {Name: "settings", MountPath: "/settings"}}
	})
	l.await("web", "ready", isReady)
	token := l.file(pod.UID, "projected", "access", "token")
	review, err := api.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated || review.Status.User.Username != "system:serviceaccount:"+l.ns+":default" ||
		len(review.Status.User.Extra["authentication.kubernetes.io/pod-uid"]) != 1 || review.Status.User.Extra["authentication.kubernetes.io/pod-uid"][0] != string(pod.UID) {
		t.Errorf("the token: %+v (%v)", review.Status, err)
	}
	if got := l.file(pod.UID, "configmap", "settings", "a"); got != "1" {
		t.Errorf("settings: %q", got)
	}
	m := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"a": "2"}}
	if _, err := api.CoreV1().ConfigMaps(l.ns).Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.eventually("the volume shows the change", func() bool { return l.file(pod.UID, "configmap", "settings", "a") == "2" })
	if err := api.CoreV1().Pods(l.ns).Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("web", "gone", nil)
}

// A pod waits for its claim, and runs when that is bound to a volume of this
// node.
func TestClaim(t *testing.T) {
	l := newLab(t, nil)
	ctx := t.Context()
	data := filepath.Join(l.dir, "data")
	claim := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1.PersistentVolumeClaimSpec{
		AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, StorageClassName: ptr.To(""), VolumeName: "pv-" + l.ns,
		Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
	}}
	claim, err := api.CoreV1().PersistentVolumeClaims(l.ns).Create(ctx, claim, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := l.pod("web", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
	})
	l.eventually("the event that it isn't bound", func() bool { return l.event(pod.UID, "FailedMount", "", "PVC is not bound") })
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + l.ns}, Spec: v1.PersistentVolumeSpec{
		Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: claim.Spec.AccessModes,
		ClaimRef:               &v1.ObjectReference{Namespace: l.ns, Name: "data", UID: claim.UID},
		PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: data, Type: ptr.To(v1.HostPathDirectoryOrCreate)}},
		NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{
			{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{l.node}},
		}}}}},
	}}
	if _, err := api.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	claim.Status.Phase = v1.ClaimBound
	if _, err := api.CoreV1().PersistentVolumeClaims(l.ns).UpdateStatus(ctx, claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("web", "ready", isReady)
	if info, err := os.Stat(data); err != nil || !info.IsDir() {
		t.Errorf("the volume: %v", err)
	}
}

// A resize that doesn't fit waits, with the pod as it was, and is done when
// another pod has gone.
func TestResize(t *testing.T) {
	l := newLab(t, nil)
	cpus := l.agent.cfg.Node.Node().Status.Allocatable.Cpu().MilliValue()
	part := func(percent int64) v1.ResourceList {
		return v1.ResourceList{v1.ResourceCPU: *resource.NewMilliQuantity(cpus*percent/100, resource.DecimalSI)}
	}
	want := func(percent int64) func(*v1.Pod) {
		return func(p *v1.Pod) { p.Spec.Containers[0].Resources.Requests = part(percent) }
	}
	l.pod("grows", want(30))
	l.pod("other", want(50))
	l.await("other", "ready", isReady)
	pod := l.await("grows", "ready", isReady)
	want(60)(pod)
	if _, err := api.CoreV1().Pods(l.ns).UpdateResize(t.Context(), "grows", pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pending := func(p *v1.Pod) *v1.PodCondition {
		_, c := podutil.GetPodCondition(&p.Status, v1.PodResizePending)
		return c
	}
	got := l.await("grows", "waiting", func(p *v1.Pod) bool { return pending(p) != nil })
	if c := pending(got); c.Reason != v1.PodReasonDeferred || !strings.Contains(c.Message, "Node didn't have enough resource: cpu") || c.ObservedGeneration != got.Generation {
		t.Errorf("condition: %+v", c)
	}
	allocated := func(p *v1.Pod) int64 { return p.Status.ContainerStatuses[0].AllocatedResources.Cpu().MilliValue() }
	if allocated(got) != cpus*30/100 {
		t.Errorf("allocated: %v", got.Status.ContainerStatuses[0].AllocatedResources)
	}
	l.eventually("the event", func() bool { return l.event(pod.UID, "ResizeDeferred", "", "Pod resize Deferred") })
	l.end()
	l.start() // what waited still does
	if got := l.get("grows"); pending(got) == nil || allocated(got) != cpus*30/100 {
		t.Errorf("after a restart: %+v", got.Status)
	}
	if err := api.CoreV1().Pods(l.ns).Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.await("grows", "resized", func(p *v1.Pod) bool { return pending(p) == nil && allocated(p) == cpus*60/100 })
}
