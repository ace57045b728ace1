package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/agent/objects"
	"unipod.dev/unipod/internal/agent/register"
	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/cri/fakecri"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
)

// api is the one API server that upstream's globals allow a process.
var api kubernetes.Interface

func TestMain(m *testing.M) { os.Exit(withAPI(m)) }

func withAPI(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	keys, err := pki.Open("", clock.RealClock{})
	if err != nil {
		panic(err)
	}
	st, err := store.Open(store.Config{})
	if err != nil {
		panic(err)
	}
	defer st.Close()
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	s, err := apiserver.New(ctx, apiserver.Config{
		Store: st, PKI: keys, ServiceCIDRs: []*net.IPNet{services}, Advertise: netip.MustParseAddrPort("192.0.2.1:6443"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	if err := s.Wait(ctx); err != nil {
		panic(err)
	}
	config := s.Loopback()
	config.QPS = -1
	api = kubernetes.NewForConfigOrDie(config)
	return m.Run()
}

// labs counts labs: a test may run more than once.
var labs atomic.Int32

// lab is a node on a fake runtime, with a namespace of its own in the API.
type lab struct {
	t    testing.TB
	ns   string
	node string
	rt   *fakecri.Runtime
	dir  string
	*life
}

// life is one life of the node's process.
type life struct {
	engine *engine.Engine
	agent  *Agent
	end    func()
}

func newLab(t testing.TB, set func(*fakecri.Runtime)) *lab {
	t.Helper()
	name := fmt.Sprintf("%s-%d", strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())), labs.Add(1))
	l := &lab{t: t, ns: name, node: "node-" + name, rt: fakecri.New(clock.RealClock{}), dir: t.TempDir()}
	if set != nil {
		set(l.rt)
	}
	ctx := t.Context()
	if _, err := api.CoreV1().Namespaces().Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.ns}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{l.ns} {
		sa := &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}, AutomountServiceAccountToken: ptr.To(false)}
		if _, err := api.CoreV1().ServiceAccounts(ns).Create(ctx, sa, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l.start()
	t.Cleanup(func() { l.end(); l.rt.Close() })
	return l
}

func (l *lab) start() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	shared := informers.NewSharedInformerFactory(api, 0)
	sources := objects.New(objects.Config{Client: api, Informers: shared, Node: l.node, Log: log})
	cfg := engine.Config{
		CRI: l.rt, Dir: filepath.Join(l.dir, "pods"), LogDir: filepath.Join(l.dir, "logs"), NodeName: l.node,
		Services: sources.Services, Logger: log,
		ObjectsOf: func(from engine.Origin) engine.Objects {
			if _, ok := from.Manifests(); ok {
				return ofManifests{}
			}
			return sources
		},
	}
	cfg.Node.HostIPs = []string{"192.0.2.1"}
	cfg.Volumes.Token, cfg.Volumes.Claim = sources.Token, sources.Claim
	e, err := engine.New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	node, err := register.New(register.Config{
		Client: api, CRI: ready{l.rt}, Name: l.node, Version: "v1.37.2", Root: l.dir, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Log: log,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	a, err := New(Config{Client: api, Informers: shared, NodeName: l.node, Engine: e, Objects: sources, Node: node, Log: log})
	if err != nil {
		l.t.Fatal(err)
	}
	var group sync.WaitGroup
	for _, run := range []func(context.Context) error{e.Run, node.Run, a.Run} {
		group.Go(func() {
			if err := run(ctx); err != nil {
				l.t.Error(err)
			}
		})
	}
	l.life = &life{engine: e, agent: a, end: func() { cancel(); group.Wait(); shared.Shutdown() }}
	select {
	case <-a.Ready():
	case <-time.After(20 * time.Second):
		l.t.Fatal("the agent doesn't get ready")
	}
}

// ofManifests are the objects of the node's own manifests: any Secret there
// could be.
type ofManifests struct{ engine.Objects }

func (ofManifests) Secret(_, name string) (*v1.Secret, error) {
	return &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"word": []byte("of the machine")}}, nil
}

// ready is a runtime that says it is.
type ready struct{ cri.Service }

func (ready) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true},
	}}}, nil
}

func (l *lab) pod(name string, set func(*v1.Pod)) *v1.Pod {
	l.t.Helper()
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: name},
		Spec: v1.PodSpec{
			NodeName: l.node, TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers: []v1.Container{{Name: "main", Image: "img"}},
		},
	}
	if set != nil {
		set(pod)
	}
	created, err := api.CoreV1().Pods(l.ns).Create(l.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return created
}

func (l *lab) get(name string) *v1.Pod {
	pod, err := api.CoreV1().Pods(l.ns).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return pod
}

// await waits until the API's pod is as wanted; nil means it is gone.
func (l *lab) await(name, what string, want func(*v1.Pod) bool) *v1.Pod {
	l.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		pod := l.get(name)
		if pod == nil && want == nil || pod != nil && want != nil && want(pod) {
			return pod
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("waiting in vain for pod %s to be %s; it is %+v", name, what, pod)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (l *lab) eventually(what string, want func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !want(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("waiting in vain: %s", what)
		}
	}
}

// event tells whether the API has an Event about a pod.
func (l *lab) event(pod types.UID, reason, field, message string) bool {
	list, err := api.CoreV1().Events(l.ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.InvolvedObject.UID == pod && e.Reason == reason && e.InvolvedObject.FieldPath == field && strings.Contains(e.Message, message) &&
			e.Source.Component == "kubelet" && e.Source.Host == l.node {
			return true
		}
	}
	return false
}

func isReady(pod *v1.Pod) bool { return podutil.IsPodReady(pod) && pod.Status.Phase == v1.PodRunning }

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
