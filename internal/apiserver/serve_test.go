package apiserver

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	restclient "k8s.io/client-go/rest"
	metricsclient "k8s.io/metrics/pkg/client/clientset/versioned"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// TestKubelet: what a node answers comes through the API.
func TestKubelet(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, k := t.Context(), clients(t, w.admin(t))
	p := pod("p")
	p.Spec.NodeName = "here"
	if _, err := k.CoreV1().Pods(ns).Create(ctx, p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	logs := func(o *corev1.PodLogOptions) string {
		t.Helper()
		b, err := k.CoreV1().Pods(ns).GetLogs("p", o).DoRaw(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got, want := logs(&corev1.PodLogOptions{TailLines: ptr.To[int64](5), Timestamps: true}), "GET /containerLogs/"+ns+"/p/c?tailLines=5&timestamps=true"; got != want {
		t.Errorf("logs asked the node for %q, want %q", got, want)
	}
	t.Run("follow", func(t *testing.T) {
		for _, c := range []*restclient.Config{w.admin(t), w.Loopback()} {
			ctx, cancel := context.WithCancel(ctx)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Host+"/api/v1/namespaces/"+ns+"/pods/p/log?follow=true", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := httpClient(t, c).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "first\n" {
				t.Errorf("%q, %v", line, err)
			}
			cancel()
			resp.Body.Close()
		}
	})
	t.Run("exec", func(t *testing.T) {
		// The fake doesn't switch protocols: its answer comes back.
		resp, body := raw(t, w.admin(t), "/api/v1/namespaces/"+ns+"/pods/p/exec?command=true&stdout=true", nil)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "pgrade") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("proxy", func(t *testing.T) {
		hostAddress(t)
		if _, err := k.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		b, err := k.CoreV1().RESTClient().Get().Resource("nodes").Name("here").SubResource("proxy").Suffix("stats/summary").DoRaw(ctx)
		if err != nil || string(b) != "GET /stats/summary" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("no node", func(t *testing.T) {
		lost := pod("lost")
		lost.Spec.NodeName = "nowhere"
		if _, err := k.CoreV1().Pods(ns).Create(ctx, lost, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		resp, body := raw(t, w.admin(t), "/api/v1/namespaces/"+ns+"/pods/lost/log", nil)
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "nowhere") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
}

func TestMetrics(t *testing.T) {
	w := start(t)
	k, err := metricsclient.NewForConfig(w.admin(t))
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := k.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 1 || nodes.Items[0].Usage.Cpu().MilliValue() != 250 {
		t.Errorf("%v, %v", nodes, err)
	}
	if _, err := k.MetricsV1beta1().NodeMetricses().Get(t.Context(), "other", metav1.GetOptions{}); err == nil {
		t.Error("a node that isn't measured is")
	}
	for in, want := range map[string]int{"": 2, "one": 1, "none": 0} {
		pods, err := k.MetricsV1beta1().PodMetricses(in).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(pods.Items) != want {
			t.Errorf("in %q: %v, %v", in, pods, err)
		}
	}
	pods, err := k.MetricsV1beta1().PodMetricses("").List(t.Context(), metav1.ListOptions{LabelSelector: "in=two"})
	if err != nil || len(pods.Items) != 1 || pods.Items[0].Namespace != "two" {
		t.Errorf("%v, %v", pods, err)
	}
	_, body := raw(t, w.admin(t), "/apis/metrics.k8s.io/v1beta1/namespaces/one/pods/p", http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}})
	if !strings.Contains(body, `"3m","4Mi"`) {
		t.Errorf("%s", body)
	}
}

func TestDiscovery(t *testing.T) {
	w := start(t)
	d := clients(t, w.admin(t)).Discovery()
	groups, lists, err := d.ServerGroupsAndResources() // aggregated
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, g := range groups {
		have[g.Name] = true
	}
	for _, g := range []string{"", "apps", "batch", "networking.k8s.io", "discovery.k8s.io", "coordination.k8s.io", "storage.k8s.io", "scheduling.k8s.io", "policy", "autoscaling",
		"rbac.authorization.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "events.k8s.io", "admissionregistration.k8s.io", "certificates.k8s.io", "node.k8s.io",
		"apiextensions.k8s.io", "metrics.k8s.io", "resource.k8s.io"} {
		if !have[g] {
			t.Errorf("group %q is not served", g)
		}
	}
	all := map[string]bool{}
	for _, l := range lists {
		for _, r := range l.APIResources {
			all[l.GroupVersion+" "+r.Name] = true
		}
	}
	for _, r := range []string{"v1 pods/exec", "v1 pods/resize", "v1 serviceaccounts/token", "apps/v1 deployments/scale", "autoscaling/v2 horizontalpodautoscalers", "certificates.k8s.io/v1 certificatesigningrequests/approval"} {
		if !all[r] {
			t.Errorf("%s is not served", r)
		}
	}
	if all["flowcontrol.apiserver.k8s.io/v1 flowschemas"] {
		t.Error("flowschemas are served, and nobody reads them")
	}
}

func TestOpenAPI(t *testing.T) {
	w := start(t)
	admin := w.admin(t)
	_, body := raw(t, admin, "/openapi/v3", nil)
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal([]byte(body), &index); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"api/v1", "apis/apps/v1", "apis/apiextensions.k8s.io/v1", "apis/metrics.k8s.io/v1beta1"} {
		at, ok := index.Paths[path]
		if !ok {
			t.Errorf("%s is not described", path)
			continue
		}
		resp, text := raw(t, admin, at.ServerRelativeURL, nil)
		if resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || !json.Valid([]byte(text)) {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
		resp, _ = raw(t, admin, at.ServerRelativeURL, http.Header{"If-None-Match": {resp.Header.Get("Etag")}})
		if resp.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %d", path, resp.StatusCode)
		}
		resp, pb := raw(t, admin, at.ServerRelativeURL, http.Header{"Accept": {"application/com.github.proto-openapi.spec.v3@v1.0+protobuf"}})
		if resp.StatusCode != http.StatusOK || len(pb) == 0 || json.Valid([]byte(pb)) {
			t.Errorf("%s as protobuf: %d", path, resp.StatusCode)
		}
	}
	if resp, _ := raw(t, admin, "/openapi/v3/apis/apps/v1?hash=old", nil); resp.StatusCode != http.StatusOK || !strings.Contains(resp.Request.URL.RawQuery, "hash=") {
		t.Errorf("an old hash: %d %s", resp.StatusCode, resp.Request.URL)
	}
	if resp, _ := raw(t, admin, "/openapi/v3/apis/none/v1", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("%d", resp.StatusCode)
	}
	resp, pb := raw(t, admin, "/openapi/v2", http.Header{"Accept": {"application/com.github.proto-openapi.spec.v2@v1.0+protobuf"}})
	if resp.StatusCode != http.StatusOK || len(pb) == 0 || json.Valid([]byte(pb)) {
		t.Errorf("v2 as protobuf: %d", resp.StatusCode)
	}
	if resp, _ := raw(t, admin, "/openapi/v2", http.Header{"Accept": {"text/html"}}); resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("v2 as HTML: %d", resp.StatusCode)
	}
}

func TestOwnService(t *testing.T) {
	w := start(t)
	ctx, k := t.Context(), clients(t, w.Loopback())
	eventually(t, "the Service of the API", func() error {
		svc, err := k.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		slice, err := k.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if svc.Spec.ClusterIP != "10.96.0.1" || slice.Endpoints[0].Addresses[0] != "10.1.0.1" || *slice.Ports[0].Port != 6443 {
			return fmt.Errorf("%v %v: %w", svc.Spec, slice, errNotYet("endpoint"))
		}
		return nil
	})
}

func TestServices(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, services := t.Context(), clients(t, w.admin(t)).CoreV1().Services(ns)
	service := func(name string, spec corev1.ServiceSpec) *corev1.Service {
		spec.Ports = []corev1.ServicePort{{Port: 80}}
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	}
	both := corev1.IPFamilyPolicyPreferDualStack
	a, err := services.Create(ctx, service("a", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &both}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Spec.ClusterIPs) != 2 || a.Spec.Ports[0].NodePort < 30000 {
		t.Errorf("%+v", a.Spec)
	}
	_, err = services.Create(ctx, service("b", corev1.ServiceSpec{ClusterIP: a.Spec.ClusterIP}), metav1.CreateOptions{})
	mustContain(t, err, "already allocated")
	if err := services.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := services.Create(ctx, service("b", corev1.ServiceSpec{ClusterIP: a.Spec.ClusterIP}), metav1.CreateOptions{}); err != nil {
		t.Error("an address that was given back:", err)
	}
	addresses := clients(t, w.admin(t)).NetworkingV1().IPAddresses()
	ip, err := addresses.Get(ctx, a.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil || *ip.Spec.ParentRef != (networkingv1.ParentReference{Resource: "services", Namespace: ns, Name: "b"}) {
		t.Errorf("the address of b: %+v, %v", ip, err)
	}
	if ip, err := addresses.Get(ctx, a.Spec.ClusterIPs[1], metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an address that was given back: %+v, %v", ip, err)
	}
	if h, err := services.Create(ctx, service("h", corev1.ServiceSpec{ClusterIP: "None"}), metav1.CreateOptions{}); err != nil || h.Spec.ClusterIP != "None" {
		t.Errorf("%v", err)
	}
}

// There is a ServiceCIDR of the node's ranges; Services get addresses of
// another when it is made.
func TestServiceCIDRs(t *testing.T) {
	w := start(t)
	ns, ctx := w.namespace(t, nil), t.Context()
	k := clients(t, w.admin(t))
	ranges, services := k.NetworkingV1().ServiceCIDRs(), k.CoreV1().Services(ns)
	eventually(t, "the ranges of the node", func() error {
		r, err := ranges.Get(ctx, "kubernetes", metav1.GetOptions{})
		if err == nil && (strings.Join(r.Spec.CIDRs, " ") != "10.96.0.0/24 fd00:96::/112" || !meta.IsStatusConditionTrue(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady)) {
			return fmt.Errorf("%+v", r)
		}
		return err
	})
	elsewhere := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}, Spec: corev1.ServiceSpec{ClusterIP: "10.97.0.7", Ports: []corev1.ServicePort{{Port: 80}}}}
	_, err := services.Create(ctx, elsewhere, metav1.CreateOptions{})
	mustContain(t, err, "10.97.0.7", "does not match the current range")
	more := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/28"}}}
	if _, err := ranges.Create(ctx, more, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an address of the other range", func() error {
		_, err := services.Create(ctx, elsewhere, metav1.CreateOptions{})
		return err
	})
}

// Node ports that stored Services have are theirs after a restart.
func TestReservePorts(t *testing.T) {
	_, v4, _ := net.ParseCIDR("10.0.0.0/28")
	_, wide, _ := net.ParseCIDR("fd00::/48")
	ctx, cancel := context.WithCancel(t.Context())
	client := fake.NewClientset()
	shared := informers.NewSharedInformerFactory(client, 0)
	make := func(cidrs ...*net.IPNet) (*serviceAllocators, error) {
		return newServiceAllocators(ctx, client, shared, cidrs, utilnet.PortRange{Base: 30000, Size: 4})
	}
	a, err := make(v4)
	if err != nil {
		t.Fatal(err)
	}
	stored := func(name string, ports ...int32) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, p := range ports {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{NodePort: p})
		}
		return s
	}
	odd := a.reservePorts([]*corev1.Service{stored("a", 30001, 30001, 40000), stored("b"), stored("c", 30001)})
	if len(odd) != 1 || !strings.Contains(odd[0].Error(), "service /c: node port 30001") {
		t.Errorf("reported: %v", odd)
	}
	if err := a.ports.Allocate(30001); err == nil {
		t.Error("a port in use is given again")
	}
	if err := a.ports.Allocate(30002); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]*net.IPNet{nil, {v4, v4}, {v4, v4, v4}, {wide}} {
		if _, err := make(bad...); err == nil {
			t.Errorf("%v: no error", bad)
		}
	}
	cancel()
}

// A watch that nobody ends doesn't keep a server from ending.
func TestServeEnds(t *testing.T) {
	w := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, l, w.keys.Serving("other", "127.0.0.1").GetCertificate) }()
	c := w.admin(t)
	c.Host = "https://" + l.Addr().String()
	events, err := clients(t, c).CoreV1().Namespaces().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-events.ResultChan()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the server goes on")
	}
	for range events.ResultChan() { //nolint:revive // until it is closed
	}
}

// A name that several groups have is that of the group Kubernetes would take,
// whatever else is defined, for clients old and new.
func TestGroupOrder(t *testing.T) {
	w := start(t)
	definitions, err := apiextensionsclient.NewForConfig(w.Loopback())
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal([]byte(`{metadata: {name: deployments.aaa.example.test}, spec: {group: aaa.example.test, scope: Namespaced, names: {plural: deployments, kind: Deployment},
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]}}`), &crd); err != nil {
		t.Fatal(err)
	}
	crds := definitions.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := crds.Create(t.Context(), &crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer crds.Delete(context.Background(), crd.Name, metav1.DeleteOptions{}) //nolint:errcheck // the server ends with the tests
	for _, legacy := range []bool{true, false} {
		d := clients(t, w.admin(t)).DiscoveryClient
		d.UseLegacyDiscovery = legacy
		eventually(t, "both groups", func() error {
			groups, err := d.ServerGroups()
			if err != nil {
				return err
			}
			at := func(name string) int {
				return slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == name })
			}
			ours, theirs, usage := at("apps"), at("aaa.example.test"), at("metrics.k8s.io")
			if ours < 0 || theirs < 0 || usage < 0 {
				return errNotYet("group")
			}
			if ours > theirs || at("autoscaling") < ours {
				t.Errorf("legacy %v: apps is at %d, aaa.example.test at %d", legacy, ours, theirs)
			}
			return nil
		})
		groups, err := d.ServerGroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups.Groups {
			if g.Name == "autoscaling" && g.PreferredVersion.Version != "v2" {
				t.Errorf("legacy %v: autoscaling %s is preferred", legacy, g.PreferredVersion.Version)
			}
		}
	}
}
