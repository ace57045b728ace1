package controllers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	clocktesting "k8s.io/utils/clock/testing"

	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/controllers"
	"unipod.dev/unipod/internal/klogs"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/scheduler"
	"unipod.dev/unipod/internal/store"
)

const nodeName = "one"

// A cluster is an API in memory, the controllers and the scheduler, and an
// agent that only says that pods run.
type cluster struct {
	client  *kubernetes.Clientset
	config  *rest.Config
	keys    *pki.Authority
	time    *clocktesting.FakeClock // of the keys
	metrics *metricsSource
	volumes string
	shared  informers.SharedInformerFactory // what the controllers know
}

// There is one in a process, upstream's registries being the process's.
var it cluster

func TestMain(m *testing.M) {
	os.Exit(func() int {
		stop, err := start()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if err := stop(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		return code
	}())
}

// ours marks stacks of goroutines that must be gone when controllers and
// scheduler have ended. The API server outlives them, with what it runs itself,
// the informers it has started and their handlers in those, so goleak would see
// more.
var ours = []string{"k8s.io/kubernetes/pkg/controller/", "k8s.io/kubernetes/pkg/scheduler", "k8s.io/client-go/tools/record", "k8s.io/client-go/tools/events", "internal/controllers.", "internal/scheduler."}

// goroutines are those that ours marks, by "goroutine N".
func goroutines() map[string]string {
	found := map[string]string{}
	buf := make([]byte, 16<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		informers := strings.Contains(stack, "cache.(*processorListener)") || strings.Contains(stack, "internal/controllers_test")
		if !informers && slices.ContainsFunc(ours, func(s string) bool { return strings.Contains(stack, s) }) {
			id, _, _ := strings.Cut(stack, " [")
			found[id] = stack
		}
	}
	return found
}

func leaked(before map[string]string) error {
	var left map[string]string
	for range 100 {
		left = goroutines()
		maps.DeleteFunc(left, func(id, _ string) bool { return before[id] != "" })
		if len(left) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(slices.Collect(maps.Values(left)), "\n\n"))
}

func start() (stop func() error, err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if os.Getenv("UNIPOD_TEST_LOG") == "" {
		log = slog.New(slog.DiscardHandler)
	}
	klogs.Install(log)
	dir, err := os.MkdirTemp("", "controllers")
	if err != nil {
		return nil, err
	}
	st, err := store.Open(store.Config{Log: log})
	if err != nil {
		return nil, err
	}
	it.time = clocktesting.NewFakeClock(time.Now())
	if it.keys, err = pki.Open("", it.time); err != nil {
		return nil, err
	}
	it.volumes = filepath.Join(dir, "volumes")
	cert, key, err := it.keys.SigningFiles(dir)
	if err != nil {
		return nil, err
	}
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	ctx, cancel := context.WithCancel(context.Background())
	api, err := apiserver.New(ctx, apiserver.Config{Store: st, PKI: it.keys, ServiceCIDRs: []*net.IPNet{services}, Log: log})
	if err != nil {
		cancel()
		return nil, err
	}
	if err := api.Wait(ctx); err != nil {
		cancel()
		return nil, err
	}
	it.config = api.Loopback()
	it.client = kubernetes.NewForConfigOrDie(it.config)
	// The last that the API server starts by itself.
	err = wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		r, err := it.client.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
		return err == nil && len(r.Status.Conditions) > 0, err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	before := goroutines()
	it.metrics = &metricsSource{api: it.config.Transport, use: map[string]string{}}

	measured := api.Loopback()
	measured.Transport = it.metrics
	upto, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	run := func(what string, f func() error) {
		running.Go(func() {
			if err := f(); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
				os.Exit(1)
			}
		})
	}
	making := &sync.Mutex{}
	run("controllers", func() error {
		return controllers.Run(upto, controllers.Config{
			Client: measured, Informers: api.Informers(), RootCA: it.keys,
			SigningCert: cert, SigningKey: key, AccountKey: it.keys.ServiceAccountKey(),
			Volumes: it.volumes, NodeName: nodeName, Making: making, Log: log,
		})
	})
	run("scheduler", func() error {
		return scheduler.Run(upto, scheduler.Config{Client: api.Loopback(), Informers: api.Informers(), Making: making, Log: log})
	})
	it.shared = api.Informers()
	a := &agent{client: it.client}
	pods := api.Informers().Core().V1().Pods().Informer()
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { a.saw(upto, o.(*v1.Pod)) },
		UpdateFunc: func(_, o any) { a.saw(upto, o.(*v1.Pod)) },
	}); err != nil {
		end()
		cancel()
		return nil, err
	}
	api.Informers().Start(upto.Done())
	running.Go(func() { a.beat(upto) })
	return func() error {
		end()
		running.Wait()
		a.running.Wait()
		left := leaked(before)
		cancel()
		api.Close()
		return errors.Join(left, st.Close(), os.RemoveAll(dir))
	}, nil
}

// What a pod's annotation asks of the agent.
const (
	exits = "test/exits" // with this code, as soon as it runs
	holds = "test/holds" // its start, until the annotation is gone
)

// An agent says that pods run, and removes those that are to end.
type agent struct {
	client  *kubernetes.Clientset
	running sync.WaitGroup
}

func (a *agent) saw(ctx context.Context, pod *v1.Pod) {
	if pod.Spec.NodeName != nodeName || ctx.Err() != nil {
		return
	}
	a.running.Go(func() {
		pods := a.client.CoreV1().Pods(pod.Namespace)
		if pod.DeletionTimestamp != nil {
			now := int64(0)
			_ = pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
			return
		}
		if _, held := pod.Annotations[holds]; held || pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed {
			return
		}
		want := v1.PodRunning
		code, ends := pod.Annotations[exits]
		if ends {
			if want = v1.PodFailed; code == "0" {
				want = v1.PodSucceeded
			}
		}
		if pod.Status.Phase == want {
			return
		}
		ready := v1.ConditionTrue
		if ends {
			ready = v1.ConditionFalse
		}
		now := metav1.Now()
		status := v1.PodStatus{
			Phase: want, PodIP: "10.0.0.7", PodIPs: []v1.PodIP{{IP: "10.0.0.7"}}, HostIP: "192.0.2.1", StartTime: &now,
			Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: ready, LastTransitionTime: now}, {Type: v1.ContainersReady, Status: ready, LastTransitionTime: now}},
		}
		for _, c := range pod.Spec.Containers {
			cs := v1.ContainerStatus{Name: c.Name, Image: c.Image, Ready: !ends, State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: now}}}
			if ends {
				n := int32(0)
				_, _ = fmt.Sscan(code, &n)
				cs.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: n, StartedAt: now, FinishedAt: now}}
			}
			status.ContainerStatuses = append(status.ContainerStatuses, cs)
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
		if err != nil {
			panic(err)
		}
		_, _ = pods.Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	})
}

// beat registers the node and says that it is well.
func (a *agent) beat(ctx context.Context) {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{v1.LabelHostname: nodeName, v1.LabelOSStable: "linux"}}}
	node, err := a.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	for err == nil {
		now := metav1.Now()
		node.Status.Capacity = v1.ResourceList{v1.ResourceCPU: resource.MustParse("100"), v1.ResourceMemory: resource.MustParse("100Gi"), v1.ResourcePods: resource.MustParse("1000")}
		node.Status.Allocatable = node.Status.Capacity
		node.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now}}
		if _, err = a.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Second):
		}
		node, err = a.client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	}
	if ctx.Err() == nil {
		panic(err)
	}
}

// A metricsSource stands before the API and answers for metrics.k8s.io.
type metricsSource struct {
	api http.RoundTripper

	mu  sync.Mutex
	use map[string]string // CPU of every pod, by namespace
}

func (m *metricsSource) RoundTrip(req *http.Request) (*http.Response, error) {
	rest, ok := strings.CutPrefix(req.URL.Path, "/apis/metrics.k8s.io/v1beta1/namespaces/")
	if !ok {
		return m.api.RoundTrip(req)
	}
	ns := strings.TrimSuffix(rest, "/pods")
	m.mu.Lock()
	cpu := m.use[ns]
	m.mu.Unlock()
	pods, err := it.client.CoreV1().Pods(ns).List(req.Context(), metav1.ListOptions{LabelSelector: req.URL.Query().Get("labelSelector")})
	if err != nil {
		return nil, err
	}
	var items []map[string]any
	for _, p := range pods.Items {
		items = append(items, map[string]any{
			"metadata": map[string]any{"name": p.Name, "namespace": ns}, "timestamp": metav1.Now(), "window": "10s",
			"containers": []map[string]any{{"name": p.Spec.Containers[0].Name, "usage": map[string]string{"cpu": cpu, "memory": "1Mi"}}},
		})
	}
	body, err := json.Marshal(map[string]any{"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "items": items})
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(body))), ContentLength: int64(len(body)),
	}, nil
}

// A space is a test's own namespace.
type space struct {
	testing.TB
	*kubernetes.Clientset
	ctx context.Context
	ns  string
}

func newSpace(t testing.TB) *space {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel() // each has a namespace of its own, and most of them wait
	}
	s := &space{TB: t, Clientset: it.client, ctx: t.Context()}
	ns, err := s.CoreV1().Namespaces().Create(s.ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	s.must(err)
	s.ns = ns.Name
	t.Cleanup(func() {
		err := s.CoreV1().Namespaces().Delete(context.Background(), s.ns, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	// Pods need it.
	s.until("there is a default ServiceAccount", func() bool {
		_, err := s.CoreV1().ServiceAccounts(s.ns).Get(s.ctx, "default", metav1.GetOptions{})
		return err == nil
	})
	return s
}

func (s *space) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// until waits for something that must come.
func (s *space) until(what string, done func() bool) {
	s.Helper()
	err := wait.PollUntilContextTimeout(s.ctx, 2*time.Millisecond, 90*time.Second, true, func(context.Context) (bool, error) { return done(), nil })
	if err != nil {
		s.Fatalf("never: %s", what)
	}
}

func (s *space) pods() []v1.Pod {
	list, err := s.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{})
	s.must(err)
	return list.Items
}

func (s *space) count(is func(*v1.Pod) bool) (n int) {
	for _, p := range s.pods() {
		if is(&p) {
			n++
		}
	}
	return n
}

func running(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning && p.DeletionTimestamp == nil }

// event waits for an event about an object.
func (s *space) event(name, reason string) string {
	s.Helper()
	var note string
	s.until(fmt.Sprintf("an event %s about %s", reason, name), func() bool {
		list, err := s.CoreV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
		s.must(err)
		for _, e := range list.Items {
			if strings.HasPrefix(e.InvolvedObject.Name, name) && e.Reason == reason {
				note = e.Message
				return true
			}
		}
		return false
	})
	return note
}

// template is a pod of one container.
func template(labels map[string]string, change ...func(*v1.PodTemplateSpec)) v1.PodTemplateSpec {
	zero := int64(0)
	t := v1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{}},
		Spec:       v1.PodSpec{TerminationGracePeriodSeconds: &zero, Containers: []v1.Container{{Name: "c", Image: "example.com/i:1"}}},
	}
	for _, c := range change {
		c(&t)
	}
	return t
}

func app(name string) map[string]string { return map[string]string{"app": name} }

func selector(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: app(name)}
}

func ptr[T any](v T) *T { return &v }
