package scheduler

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"unipod.dev/unipod/internal/klogs"
)

func TestMain(m *testing.M) {
	klogs.Install(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// A world is an API that is only a memory, and a scheduler on it.
type world struct {
	*testing.T
	ctx    context.Context
	client *fake.Clientset
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, client: fake.NewClientset()}
	pods := v1.SchemeGroupVersion.WithResource("pods")
	w.client.PrependReactor("create", "pods", func(a ktesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "binding" {
			return false, nil, nil
		}
		b := a.(ktesting.CreateAction).GetObject().(*v1.Binding)
		o, err := w.client.Tracker().Get(pods, a.GetNamespace(), b.Name)
		if err != nil {
			return true, nil, err
		}
		pod := o.(*v1.Pod).DeepCopy()
		pod.Spec.NodeName = b.Target.Name
		return true, b, w.client.Tracker().Update(pods, pod, a.GetNamespace())
	})
	shared := informers.NewSharedInformerFactory(w.client, 0)
	ctx, cancel := context.WithCancel(t.Context())
	w.ctx = ctx
	ended := make(chan error, 1)
	w.node(func(*v1.Node) {})
	go func() { ended <- run(ctx, w.client, shared, &sync.Mutex{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		shared.Shutdown()
	})
	return w
}

func (w *world) node(change func(*v1.Node)) {
	w.Helper()
	nodes := w.client.CoreV1().Nodes()
	n, err := nodes.Get(context.Background(), "one", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		n = &v1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "one", Labels: map[string]string{v1.LabelHostname: "one"}},
			Status: v1.NodeStatus{Allocatable: v1.ResourceList{
				v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10"),
			}},
		}
		if n, err = nodes.Create(context.Background(), n, metav1.CreateOptions{}); err != nil {
			w.Fatal(err)
		}
	}
	n = n.DeepCopy()
	change(n)
	if _, err := nodes.Update(context.Background(), n, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) pod(name string, change func(*v1.Pod)) {
	w.Helper()
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
		Spec: v1.PodSpec{
			SchedulerName: v1.DefaultSchedulerName,
			Containers:    []v1.Container{{Name: "c", Image: "i"}},
		},
		Status: v1.PodStatus{Phase: v1.PodPending},
	}
	if change != nil {
		change(pod)
	}
	if _, err := w.client.CoreV1().Pods("default").Create(w.ctx, pod, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func cpu(amount string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(amount)}
	}
}

// until waits for something that must come.
func (w *world) until(what string, done func() bool) {
	w.Helper()
	err := wait.PollUntilContextTimeout(w.ctx, 2*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) { return done(), nil })
	if err != nil {
		w.Fatalf("never: %s", what)
	}
}

func (w *world) get(name string) *v1.Pod {
	pod, err := w.client.CoreV1().Pods("default").Get(w.ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

func (w *world) bound(name string) {
	w.Helper()
	w.until(name+" is bound", func() bool { p := w.get(name); return p != nil && p.Spec.NodeName == "one" })
}

// refused waits until the pod is told why it isn't scheduled, and returns it.
func (w *world) refused(name string) string {
	w.Helper()
	var said string
	w.until(name+" is refused", func() bool {
		list, err := w.client.EventsV1().Events("default").List(w.ctx, metav1.ListOptions{})
		if err != nil {
			w.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Regarding.Name == name && e.Reason == "FailedScheduling" {
				said = e.Note
			}
		}
		return said != ""
	})
	w.until(name+"'s condition says so", func() bool {
		for _, c := range w.get(name).Status.Conditions {
			if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse && c.Reason == v1.PodReasonUnschedulable {
				return c.Message == said
			}
		}
		return false
	})
	return said
}

func TestBinds(t *testing.T) {
	w := newWorld(t)
	w.pod("a", nil)
	w.bound("a")
	w.pod("other", func(p *v1.Pod) { p.Spec.SchedulerName = "someone-else" })
	w.pod("given", func(p *v1.Pod) { p.Spec.NodeName = "two" })
	w.pod("b", nil)
	w.bound("b")
	if n := w.get("other").Spec.NodeName; n != "" {
		t.Errorf("a pod of another scheduler was bound to %q", n)
	}
	if n := w.get("given").Spec.NodeName; n != "two" {
		t.Errorf("a pod given to node two is on %q", n)
	}
	w.until("an event tells it was scheduled", func() bool {
		list, _ := w.client.EventsV1().Events("default").List(w.ctx, metav1.ListOptions{})
		for _, e := range list.Items {
			if e.Reason == "Scheduled" && e.Note == "Successfully assigned default/a to one" && e.Type == v1.EventTypeNormal {
				return true
			}
		}
		return false
	})
}

func TestWords(t *testing.T) {
	anti := func(p *v1.Pod) {
		p.Labels = map[string]string{"app": "x"}
		p.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}, TopologyKey: v1.LabelHostname,
		}}}}
	}
	port := func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 80, Protocol: v1.ProtocolTCP}}
	}
	for _, c := range []struct {
		name  string
		node  func(*v1.Node)
		first func(*v1.Pod) // of a pod that is there before
		pod   func(*v1.Pod)
		want  string
	}{
		{name: "selector", pod: func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} },
			want: "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "taint", node: func(n *v1.Node) {
			n.Spec.Taints = []v1.Taint{{Key: "k", Value: "v", Effect: v1.TaintEffectNoSchedule}}
		},
			want: "0/1 nodes are available: 1 node(s) had untolerated taint(s). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "cordon", node: func(n *v1.Node) { n.Spec.Unschedulable = true },
			want: "0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "cpu", pod: cpu("3"),
			want: "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "port", first: port, pod: port,
			want: "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		{name: "antiaffinity", first: anti, pod: anti,
			want: "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		{name: "spread", first: func(p *v1.Pod) { p.Labels = map[string]string{"app": "x"} }, pod: func(p *v1.Pod) {
			p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: v1.DoNotSchedule,
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}}}
		},
			want: "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "claim", pod: func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		},
			want: `0/1 nodes are available: persistentvolumeclaim "data" not found. not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.node != nil {
				w.node(c.node)
			}
			if c.first != nil {
				w.pod("first", c.first)
				w.bound("first")
			}
			w.pod("p", c.pod)
			if got := w.refused("p"); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestGates(t *testing.T) {
	w := newWorld(t)
	w.pod("p", func(p *v1.Pod) { p.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "example.com/wait"}} })
	w.pod("q", nil)
	w.bound("q")
	p := w.get("p")
	if p.Spec.NodeName != "" {
		t.Fatal("a gated pod was bound")
	}
	p = p.DeepCopy()
	p.Spec.SchedulingGates = nil
	p.ResourceVersion = "2" // the fake counts none, and the scheduler tells changes by it
	if _, err := w.client.CoreV1().Pods("default").Update(w.ctx, p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.bound("p")
}

// What made a pod wait is over: it is bound at the event, not by the clock.
func TestWakes(t *testing.T) {
	w := newWorld(t)
	w.pod("p", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} })
	w.refused("p")
	w.node(func(n *v1.Node) { n.Labels["disk"] = "ssd" })
	w.bound("p")
}

// A pod that has ended takes no room, although it is still there.
func TestEndedPods(t *testing.T) {
	w := newWorld(t)
	w.pod("done", func(p *v1.Pod) {
		cpu("2")(p)
		p.Spec.NodeName, p.Status.Phase = "one", v1.PodSucceeded
	})
	w.pod("big", cpu("2"))
	w.bound("big")
	w.pod("next", cpu("2"))
	if said := w.refused("next"); !strings.Contains(said, "Insufficient cpu") {
		t.Errorf("refused for another reason: %s", said)
	}
	big := w.get("big").DeepCopy()
	big.Status.Phase = v1.PodFailed
	if _, err := w.client.CoreV1().Pods("default").UpdateStatus(w.ctx, big, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.bound("next")
}

func TestPreempts(t *testing.T) {
	w := newWorld(t)
	w.pod("low", cpu("2"))
	w.bound("low")
	high := int32(1000)
	w.pod("never", func(p *v1.Pod) {
		cpu("2")(p)
		never := v1.PreemptNever
		p.Spec.Priority, p.Spec.PreemptionPolicy = &high, &never
	})
	if said := w.refused("never"); !strings.Contains(said, "not eligible due to preemptionPolicy=Never") {
		t.Errorf("said: %s", said)
	}
	w.pod("high", func(p *v1.Pod) {
		cpu("1")(p)
		p.Spec.Priority = &high
	})
	w.bound("high")
	if w.get("low") != nil {
		t.Error("the pod of low priority is still there")
	}
	w.until("an event tells who was preempted", func() bool {
		return w.event(func(e eventsv1.Event) bool {
			return e.Regarding.Name == "low" && e.Reason == "Preempted" && strings.Contains(e.Note, "Preempted by pod high")
		})
	})
}

func (w *world) event(is func(eventsv1.Event) bool) bool {
	list, err := w.client.EventsV1().Events("default").List(w.ctx, metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range list.Items {
		if is(e) {
			return true
		}
	}
	return false
}
