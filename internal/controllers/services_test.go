package controllers_test

import (
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// endpoints are how many addresses of a Service are ready, by both ways to ask.
func (s *space) endpoints(service string) (old, ready, notReady int) {
	if e, err := s.CoreV1().Endpoints(s.ns).Get(s.ctx, service, metav1.GetOptions{}); err == nil {
		for _, sub := range e.Subsets {
			old += len(sub.Addresses)
		}
	}
	list, err := s.DiscoveryV1().EndpointSlices(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + service})
	s.must(err)
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if *e.Conditions.Ready {
				ready++
			} else {
				notReady++
			}
		}
	}
	return old, ready, notReady
}

func TestEndpointsFollowReadiness(t *testing.T) {
	s := newSpace(t)
	_, err := s.CoreV1().Services(s.ns).Create(s.ctx, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: v1.ServiceSpec{Selector: app("web"), Ports: []v1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}, metav1.CreateOptions{})
	s.must(err)
	s.deployment("web", 1)
	s.until("the ready pod is an endpoint", func() bool { old, ready, _ := s.endpoints("web"); return old == 1 && ready == 1 })
	_, err = s.CoreV1().Pods(s.ns).Patch(s.ctx, s.pods()[0].Name, types.StrategicMergePatchType,
		[]byte(`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`), metav1.PatchOptions{}, "status")
	s.must(err)
	s.until("one that isn't ready gets no traffic", func() bool {
		old, ready, notReady := s.endpoints("web")
		return old == 0 && ready == 0 && notReady == 1
	})
}

func TestMirroredEndpoints(t *testing.T) {
	s := newSpace(t)
	_, err := s.CoreV1().Services(s.ns).Create(s.ctx, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "far"},
		Spec: v1.ServiceSpec{Ports: []v1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	s.must(err)
	//lint:ignore SA1019 it is what is mirrored
	_, err = s.CoreV1().Endpoints(s.ns).Create(s.ctx, &v1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "far"},
		//lint:ignore SA1019 it is what is mirrored
		Subsets: []v1.EndpointSubset{{Addresses: []v1.EndpointAddress{{IP: "192.0.2.7"}}, Ports: []v1.EndpointPort{{Port: 80}}}}}, metav1.CreateOptions{})
	s.must(err)
	s.until("an EndpointSlice says the same", func() bool {
		list, err := s.DiscoveryV1().EndpointSlices(s.ns).List(s.ctx, metav1.ListOptions{})
		s.must(err)
		return slices.ContainsFunc(list.Items, func(e discovery.EndpointSlice) bool {
			return e.Labels[discovery.LabelServiceName] == "far" && len(e.Endpoints) == 1 && e.Endpoints[0].Addresses[0] == "192.0.2.7"
		})
	})
}
