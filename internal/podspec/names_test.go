package podspec

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 62)
	text := func(s string) *string { return &s }
	for _, c := range []struct {
		name string
		spec v1.PodSpec
		want string // "hostname domain", or the error
	}{
		{"web", v1.PodSpec{}, "web "},
		{"web", v1.PodSpec{Hostname: "h"}, "h "},
		{"web", v1.PodSpec{Subdomain: "s"}, "web s.ns.svc.cluster.local"},
		{"web", v1.PodSpec{Hostname: "h", Subdomain: "s", HostnameOverride: text("o.example")}, "o.example "},
		{long + "-.-b", v1.PodSpec{}, long + " "},
		{strings.Repeat(".", 70), v1.PodSpec{}, `hostname for pod "` + strings.Repeat(".", 70) + `" was invalid: "` + strings.Repeat(".", 70) + `"`},
		{"web", v1.PodSpec{Hostname: "A"}, `pod Hostname "A" is not a valid DNS label: `},
		{"web", v1.PodSpec{Subdomain: "A"}, `pod Subdomain "A" is not a valid DNS label: `},
		{"web", v1.PodSpec{HostnameOverride: text("A")}, `pod HostnameOverride "A" is not a valid DNS subdomain: `},
	} {
		pod := &v1.Pod{Spec: c.spec}
		pod.Name, pod.Namespace = c.name, "ns"
		hostname, domain, err := Hostname(pod, "cluster.local")
		got := hostname + " " + domain
		if err != nil {
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%s, %+v:\n got  %s\n want %s", c.name, c.spec, got, c.want)
		}
	}
}

func TestFitDNS(t *testing.T) {
	var many, wide []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("d%d.example", i))
	}
	for i := range 20 {
		wide = append(wide, fmt.Sprintf("%s.example%02d", strings.Repeat("x", 200), i))
	}
	long := strings.Repeat("y", 254)
	for name, c := range map[string]struct {
		in   []string
		want []string
	}{
		"few":            {many[:3], many[:3]},
		"too many":       {many, many[:32]},
		"too wide":       {wide, wide[:9]}, // 9 × 211 − 1 characters of 2048
		"one that long":  {[]string{"a", long, "b"}, []string{"a", "b"}},
		"nothing at all": {nil, nil},
	} {
		pod := &v1.Pod{Spec: v1.PodSpec{DNSPolicy: v1.DNSNone, DNSConfig: &v1.PodDNSConfig{Searches: c.in}}}
		dns, warnings := dnsConfig(&Node{}, pod)
		if strings.Join(dns.Searches, " ") != strings.Join(c.want, " ") {
			t.Errorf("%s: %d of %d searches left", name, len(dns.Searches), len(c.in))
		}
		if cut := len(c.in) != len(c.want); cut != (len(warnings) == 1) {
			t.Errorf("%s: warnings %v", name, warnings)
		}
	}
}
