package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
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
