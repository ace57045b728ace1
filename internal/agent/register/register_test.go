package register

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	testclock "k8s.io/utils/clock/testing"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/machine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rt is a runtime that says of itself what the test wants.
type rt struct {
	cri.Service
	mu      sync.Mutex
	network bool
	err     error
	images  int
}

func (r *rt) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "unipod", RuntimeVersion: "1.2.3"}, nil
}

func (r *rt) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: r.network, Reason: "NoBridge", Message: "it is gone"},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: true}}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}, r.err
}

func (r *rt) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	for i := range r.images {
		resp.Images = append(resp.Images, &runtimeapi.Image{Id: string(rune('a' + i%26)), RepoTags: []string{"image:tag"}, Size: uint64(i)})
	}
	return resp, nil
}

type stand struct {
	*Node
	t   *testing.T
	api *fake.Clientset
	rt  *rt
	clk *testclock.FakeClock

	mu     sync.Mutex
	events []string
}

func newStand(t *testing.T, existing *v1.Node) *stand {
	t.Helper()
	s := &stand{t: t, api: fake.NewClientset(), rt: &rt{network: true, images: 60}, clk: testclock.NewFakeClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))}
	if existing != nil {
		s.api = fake.NewClientset(existing)
	}
	var err error
	s.Node, err = New(Config{
		Client: s.api, CRI: s.rt, Name: "n1", Version: "v1.37.2+unipod", Root: t.TempDir(), Port: 10250,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, Clock: s.clk,
		Record: func(_, reason, _ string) { s.mu.Lock(); s.events = append(s.events, reason); s.mu.Unlock() },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stand) node() *v1.Node {
	s.t.Helper()
	node, err := s.api.CoreV1().Nodes().Get(s.t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return node
}

func (s *stand) writes() (n int) {
	for _, a := range s.api.Actions() {
		if a.GetVerb() != "get" {
			n++
		}
	}
	return n
}

func TestRegister(t *testing.T) {
	s := newStand(t, nil)
	if !s.register(t.Context()) {
		t.Fatal("not registered")
	}
	node := s.node()
	st := &node.Status
	if node.Labels[v1.LabelHostname] != "n1" || node.Labels[v1.LabelOSStable] != "linux" {
		t.Errorf("labels: %v", node.Labels)
	}
	if ready := condition(st, v1.NodeReady); ready == nil || ready.Status != v1.ConditionTrue || ready.Reason != "KubeletReady" || st.Conditions[len(st.Conditions)-1].Type != v1.NodeReady {
		t.Errorf("conditions: %+v", st.Conditions)
	}
	if len(st.Conditions) != 4 || len(st.Addresses) != 2 || st.Addresses[0].Address != "192.0.2.7" || st.DaemonEndpoints.KubeletEndpoint.Port != 10250 {
		t.Errorf("status: %+v", st)
	}
	if len(st.Images) != 50 || st.Images[0].SizeBytes != 59 {
		t.Errorf("%d images, the first %+v", len(st.Images), st.Images[0])
	}
	if st.NodeInfo.ContainerRuntimeVersion != "unipod://1.2.3" || st.NodeInfo.KubeletVersion != "v1.37.2+unipod" || st.NodeInfo.KernelVersion == "" {
		t.Errorf("nodeInfo: %+v", st.NodeInfo)
	}
	if len(st.RuntimeHandlers) != 1 || !*st.RuntimeHandlers[0].Features.UserNamespaces || !*st.Features.SupplementalGroupsPolicy {
		t.Errorf("features: %+v %+v", st.RuntimeHandlers, st.Features)
	}
}

// What nobody needs to know is not written; what has changed is, and told.
func TestUpdates(t *testing.T) {
	s := newStand(t, nil)
	s.register(t.Context())
	before := s.writes()
	s.clk.Step(time.Minute)
	must(t, s.update(t.Context()))
	if n := s.writes() - before; n != 0 {
		t.Errorf("%d writes though nothing changed", n)
	}
	was := condition(&s.node().Status, v1.NodeReady).LastTransitionTime
	s.clk.Step(report)
	must(t, s.update(t.Context()))
	ready := condition(&s.node().Status, v1.NodeReady)
	if !ready.LastTransitionTime.Equal(&was) || !ready.LastHeartbeatTime.Time.Equal(s.clk.Now()) {
		t.Errorf("the heartbeat: %+v", ready)
	}
	s.rt.network = false
	must(t, s.update(t.Context()))
	ready = condition(&s.node().Status, v1.NodeReady)
	if want := "container runtime network not ready: NetworkReady=false reason:NoBridge message:it is gone"; ready.Status != v1.ConditionFalse || ready.Message != want {
		t.Errorf("without a network: %+v", ready)
	}
	s.rt.err = errors.New("no answer")
	must(t, s.update(t.Context()))
	if ready = condition(&s.node().Status, v1.NodeReady); !strings.Contains(ready.Message, "container runtime is down") {
		t.Errorf("without a runtime: %+v", ready)
	}
	s.rt.err, s.rt.network = nil, true
	must(t, s.update(t.Context()))
	if got := strings.Join(s.events, " "); got != "Starting NodeNotReady NodeReady" {
		t.Errorf("events: %s", got)
	}
}

// What the administrator wrote stays, and a node that was deleted comes back.
func TestTakesOver(t *testing.T) {
	s := newStand(t, &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"disk": "ssd", v1.LabelOSStable: "plan9"}},
		Spec:       v1.NodeSpec{Unschedulable: true, Taints: []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoSchedule}}},
		Status: v1.NodeStatus{
			Capacity:   v1.ResourceList{"example.com/gpu": resource.MustParse("2"), "hugepages-16Gi": resource.MustParse("1")},
			Conditions: []v1.NodeCondition{{Type: "Odd", Status: v1.ConditionTrue}},
		},
	})
	s.register(t.Context())
	node := s.node()
	if node.Labels["disk"] != "ssd" || node.Labels[v1.LabelOSStable] != "linux" || !node.Spec.Unschedulable || len(node.Spec.Taints) != 1 {
		t.Errorf("node: %+v", node)
	}
	if q := node.Status.Allocatable["example.com/gpu"]; q.Value() != 2 || condition(&node.Status, "Odd") == nil {
		t.Errorf("status: %+v", node.Status)
	}
	if _, stale := node.Status.Capacity["hugepages-16Gi"]; stale {
		t.Error("huge pages that this machine doesn't have are still there")
	}
	must(t, s.api.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}))
	must(t, s.update(t.Context()))
	s.node()
}

func TestResources(t *testing.T) {
	f := &machine.Facts{CPUs: 4, Memory: 8 << 30, Disk: 100 << 30, HugePages: map[string]int64{"2Mi": 1 << 30, "1Gi": 0}}
	capacity, allocatable := resources(f, nil, 110, nil)
	for name, want := range map[v1.ResourceName][2]string{
		v1.ResourceCPU: {"4", "4"}, v1.ResourceMemory: {"8Gi", "7068Mi"}, v1.ResourcePods: {"110", "110"},
		v1.ResourceEphemeralStorage: {"100Gi", "90Gi"}, "hugepages-2Mi": {"1Gi", "1Gi"}, "hugepages-1Gi": {"0", "0"},
	} {
		c, a := capacity[name], allocatable[name]
		if c.Cmp(resource.MustParse(want[0])) != 0 || a.Cmp(resource.MustParse(want[1])) != 0 {
			t.Errorf("%s: %s, %s allocatable; want %v", name, c.String(), a.String(), want)
		}
	}
}

// Run renews the lease and ends with its context.
func TestRun(t *testing.T) {
	s := newStand(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Registered()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		lease, err := s.api.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(ctx, "n1", metav1.GetOptions{})
		if err == nil && *lease.Spec.HolderIdentity == "n1" && len(lease.OwnerReferences) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no lease: %v", err)
		}
	}
	cancel()
	must(t, <-done)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
