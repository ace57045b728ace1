package plan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/test/golden"
)

// TestTables reads testdata/*.txt: Services and EndpointSlices as YAML, then
// "----", then the table that comes of each Service. The node is "here", in
// zone "a".
func TestTables(t *testing.T) {
	golden.Stories(t, func(t *testing.T, script string) string {
		services, endpoints := read(t, script)
		var got strings.Builder
		for _, s := range services {
			table := Of(s, endpoints, Node{Name: "here", Labels: map[string]string{v1.LabelTopologyZone: "a"}})
			for _, p := range table {
				fmt.Fprintln(&got, p)
			}
			if len(table) == 0 {
				fmt.Fprintln(&got, s.Name, "has no address")
			}
		}
		return got.String()
	})
}

// read decodes the objects and gives them the defaults the API does.
func read(t *testing.T, text string) (services []*v1.Service, endpoints []*discovery.EndpointSlice) {
	t.Helper()
	for docs := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(text))); ; {
		buf := make([]byte, 1<<16)
		n, err := docs.Read(buf)
		if errors.Is(err, io.EOF) {
			return services, endpoints
		}
		if err != nil {
			t.Fatal(err)
		}
		doc := buf[:n]
		if bytes.Contains(doc, []byte("kind: Service\n")) {
			s := &v1.Service{}
			decode(t, doc, s)
			s.Namespace = "shop"
			for i := range s.Spec.Ports {
				if s.Spec.Ports[i].Protocol == "" {
					s.Spec.Ports[i].Protocol = v1.ProtocolTCP
				}
			}
			if len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
				s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
			}
			for _, ip := range s.Spec.ClusterIPs {
				if strings.Contains(ip, ":") {
					s.Spec.IPFamilies = append(s.Spec.IPFamilies, v1.IPv6Protocol)
				} else {
					s.Spec.IPFamilies = append(s.Spec.IPFamilies, v1.IPv4Protocol)
				}
			}
			if s.Spec.SessionAffinity == v1.ServiceAffinityClientIP && s.Spec.SessionAffinityConfig == nil {
				s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr.To(v1.DefaultClientIPServiceAffinitySeconds)}}
			}
			services = append(services, s)
			continue
		}
		e := &discovery.EndpointSlice{}
		decode(t, doc, e)
		e.Namespace = "shop"
		for i := range e.Ports {
			if e.Ports[i].Name == nil {
				e.Ports[i].Name = ptr.To("")
			}
			if e.Ports[i].Protocol == nil {
				e.Ports[i].Protocol = ptr.To(v1.ProtocolTCP)
			}
		}
		endpoints = append(endpoints, e)
	}
}

func decode(t *testing.T, doc []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(doc, into); err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
}

// TestForbiddenBackends: what the API refuses in a slice is not a backend
// either, should it come by another way.
func TestForbiddenBackends(t *testing.T) {
	for addr, ok := range map[string]bool{
		"10.0.0.1": true, "127.0.0.1": false, "169.254.169.254": false, "0.0.0.0": false, "224.0.0.1": false, "none": false, "": false,
	} {
		service := &v1.Service{}
		service.Namespace, service.Name = "shop", "web"
		service.Spec = v1.ServiceSpec{ClusterIP: "10.67.0.9", ClusterIPs: []string{"10.67.0.9"}, IPFamilies: []v1.IPFamily{v1.IPv4Protocol}, Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP}}}
		slice := &discovery.EndpointSlice{AddressType: discovery.AddressTypeIPv4}
		slice.Namespace, slice.Name, slice.Labels = "shop", "web-1", map[string]string{discovery.LabelServiceName: "web"}
		slice.Endpoints = []discovery.Endpoint{{Addresses: []string{addr}}}
		slice.Ports = []discovery.EndpointPort{{Name: ptr.To(""), Port: ptr.To[int32](80), Protocol: ptr.To(v1.ProtocolTCP)}}
		got := Of(service, []*discovery.EndpointSlice{slice}, Node{})
		if len(got) != 1 || (len(got[0].Backends) == 1) != ok {
			t.Errorf("%q: %v", addr, got)
		}
		if ok && got[0].Backends[0] != netip.MustParseAddrPort(addr+":80") {
			t.Errorf("%q: %v", addr, got)
		}
	}
}
