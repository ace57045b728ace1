package service

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/test/isolate"
)

func TestMain(m *testing.M) { isolate.Network(m) }

// run runs a controller until the function it returns is called.
func run(t *testing.T, client kubernetes.Interface, c clock.Clock) (stop func()) {
	t.Helper()
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := New(Config{
		Informers: factory, NodeName: "here", Link: "unipod0", Networks: []netip.Prefix{netip.MustParsePrefix("10.67.0.0/16")},
		Clock: c, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		if err := controller.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	factory.Start(ctx.Done())
	stop = sync.OnceFunc(func() {
		cancel()
		work.Wait()
		factory.Shutdown()
	})
	t.Cleanup(stop)
	return stop
}

// backends are the addresses that the kernel has in its map of backends; nil
// without a table.
func backends(t *testing.T) (all []string) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: TableName("unipod0"), Family: nftables.TableFamilyINet}
	found, err := c.GetSetElements(&nftables.Set{Table: table, Name: "backends4"})
	if err != nil {
		return nil
	}
	all = []string{}
	for _, e := range found {
		a, _ := netip.AddrFromSlice(e.Val[:4])
		all = append(all, a.String())
	}
	slices.Sort(all)
	return all
}

func until(t *testing.T, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := backends(t)
		if got != nil && slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the kernel has %v, not %v", got, want)
		}
	}
}

func object(name, ip string) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: v1.ServiceSpec{
		ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []v1.IPFamily{v1.IPv4Protocol}, Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP}},
	}}
}

func slice(service string, addresses ...string) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: service + "-1", Labels: map[string]string{discovery.LabelServiceName: service}},
		AddressType: discovery.AddressTypeIPv4, Ports: []discovery.EndpointPort{{Name: ptr.To(""), Port: ptr.To[int32](80), Protocol: ptr.To(v1.ProtocolTCP)}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{a}, Zone: ptr.To("b"), Hints: &discovery.EndpointHints{ForZones: []discovery.ForZone{{Name: a}}}})
	}
	return s
}

// TestFollows: what the API says is what the kernel has: at the start, after
// each change, and after a restart that missed some.
func TestFollows(t *testing.T) {
	ctx := t.Context()
	client := fake.NewClientset(object("web", "10.67.0.9"), slice("web", "10.66.0.2"))
	stop := run(t, client, clock.RealClock{})
	until(t, "10.66.0.2")
	slices, services := client.DiscoveryV1().EndpointSlices("shop"), client.CoreV1().Services("shop")
	ok := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(slices.Update(ctx, slice("web", "10.66.0.2", "10.66.0.3"), metav1.UpdateOptions{}))
	until(t, "10.66.0.2", "10.66.0.3")
	// Endpoints may be there before their Service is.
	ok(slices.Create(ctx, slice("db", "10.66.0.4"), metav1.CreateOptions{}))
	ok(services.Create(ctx, object("db", "10.67.0.10"), metav1.CreateOptions{}))
	until(t, "10.66.0.2", "10.66.0.3", "10.66.0.4")
	ok(nil, services.Delete(ctx, "web", metav1.DeleteOptions{}))
	until(t, "10.66.0.4")

	stop()
	if got := backends(t); len(got) != 1 {
		t.Errorf("the end of the controller took Services away: %v", got)
	}
	ok(slices.Update(ctx, slice("db", "10.66.0.5"), metav1.UpdateOptions{}))
	ok(services.Create(ctx, object("web", "10.67.0.9"), metav1.CreateOptions{}))
	stop = run(t, client, clock.RealClock{})
	until(t, "10.66.0.2", "10.66.0.3", "10.66.0.5")
	stop()
	ok(nil, Remove("unipod0"))
	ok(nil, Remove("unipod0"))
	if got := backends(t); got != nil {
		t.Errorf("removed: %v", got)
	}
}

// TestZone: the node's labels say which endpoints are near.
func TestZone(t *testing.T) {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here", Labels: map[string]string{v1.LabelTopologyZone: "10.66.0.2"}}}
	client := fake.NewClientset(node, object("web", "10.67.0.9"), slice("web", "10.66.0.2", "10.66.0.3"))
	stop := run(t, client, clock.RealClock{})
	until(t, "10.66.0.2")
	node = node.DeepCopy()
	node.Labels[v1.LabelTopologyZone] = "10.66.0.3"
	if _, err := client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "10.66.0.3")
	stop()
	if err := Remove("unipod0"); err != nil {
		t.Fatal(err)
	}
}

// TestFlushed: somebody flushes the ruleset, and nothing else happens: the
// Services are back a minute later.
func TestFlushed(t *testing.T) {
	client := fake.NewClientset(object("web", "10.67.0.9"), slice("web", "10.66.0.2"))
	now := clocktesting.NewFakeClock(time.Now())
	run(t, client, now)
	until(t, "10.66.0.2")
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := backends(t); got != nil {
		t.Fatalf("flushed: %v", got)
	}
	for backends(t) == nil {
		now.Step(checkEvery)
		time.Sleep(5 * time.Millisecond)
	}
	until(t, "10.66.0.2")
	if err := Remove("unipod0"); err != nil {
		t.Fatal(err)
	}
}

// TestTableName: nodes that share a network namespace have tables of their own.
func TestTableName(t *testing.T) {
	for link, want := range map[string]string{"": "unipod-services", "unipod0": "unipod-services", "pods9": "unipod-services-pods9"} {
		if got := TableName(link); got != want {
			t.Errorf("%q: %s", link, got)
		}
	}
}
