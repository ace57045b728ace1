package apiserver

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

const crontab = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Spec, type: string, jsonPath: .spec.cron}]
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cron]
            properties:
              cron: {type: string, description: when it runs}
              replicas: {type: integer, default: 1, maximum: 9}
            x-kubernetes-validations: [{rule: "self.cron != 'never'", message: never is no time}]
          status: {type: object, properties: {replicas: {type: integer}}}
`

// TestCustomResources is what an operator does.
func TestCustomResources(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx := t.Context()
	definitions, err := apiextensionsclient.NewForConfig(w.Loopback())
	if err != nil {
		t.Fatal(err)
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(crontab), crd); err != nil {
		t.Fatal(err)
	}
	crds := definitions.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := crds.Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the definition", func() error {
		got, err := crds.Get(ctx, crd.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range got.Status.Conditions {
			if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
		}
		return errNotYet(crd.Name)
	})
	gvr := schema.GroupVersionResource{Group: "example.test", Version: "v1", Resource: "crontabs"}
	tabs := dynamicClient(t, w.admin(t)).Resource(gvr).Namespace(ns)
	tab := func(name string, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.test/v1", "kind": "CronTab", "metadata": map[string]any{"name": name}, "spec": spec}}
	}
	var made *unstructured.Unstructured
	eventually(t, "the resource", func() (err error) {
		made, err = tabs.Create(ctx, tab("a", map[string]any{"cron": "daily"}), metav1.CreateOptions{})
		return err
	})
	if n, _, _ := unstructured.NestedInt64(made.Object, "spec", "replicas"); n != 1 {
		t.Errorf("no default: %v", made.Object)
	}
	_, err = tabs.Create(ctx, tab("b", map[string]any{"replicas": int64(10)}), metav1.CreateOptions{})
	mustContain(t, err, "spec.cron: Required", "should be less than or equal to 9")
	_, err = tabs.Create(ctx, tab("b", map[string]any{"cron": "never"}), metav1.CreateOptions{})
	mustContain(t, err, "never is no time")
	if _, err := tabs.Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"replicas":3},"status":{"replicas":3}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Error("scale:", err)
	}
	if got, err := tabs.Patch(ctx, "a", types.MergePatchType, []byte(`{"status":{"replicas":2}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Error("status:", err)
	} else if n, _, _ := unstructured.NestedInt64(got.Object, "status", "replicas"); n != 2 {
		t.Errorf("%v", got.Object)
	}
	applied, err := tabs.Apply(ctx, "a", tab("a", map[string]any{"cron": "hourly"}), metav1.ApplyOptions{FieldManager: "op", Force: true})
	if err != nil || len(applied.GetManagedFields()) < 2 {
		t.Errorf("apply: %v %v", applied, err)
	}
	_, body := raw(t, w.admin(t), "/apis/example.test/v1/namespaces/"+ns+"/crontabs", http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}})
	if !strings.Contains(body, "hourly") || !strings.Contains(body, `"name":"Spec"`) {
		t.Errorf("table: %s", body)
	}
	_, body = raw(t, w.admin(t), "/openapi/v3/apis/example.test/v1", nil)
	if !strings.Contains(body, "when it runs") {
		t.Errorf("openapi v3 lacks it: %s", body)
	}
	if _, body = raw(t, w.admin(t), "/openapi/v2", nil); !strings.Contains(body, "when it runs") || !strings.Contains(body, "io.k8s.api.apps.v1.Deployment") {
		t.Error("openapi v2 lacks it")
	}
	found, err := clients(t, w.admin(t)).Discovery().ServerResourcesForGroupVersion("example.test/v1")
	if err != nil || len(found.APIResources) != 3 {
		t.Errorf("discovery: %v %v", found, err)
	}
	old := clients(t, w.admin(t)).DiscoveryClient
	old.UseLegacyDiscovery = true
	listed := func() bool {
		groups, err := old.ServerGroups()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == "example.test" && g.PreferredVersion.Version == "v1" })
	}
	if !listed() {
		t.Error("old clients don't find the group")
	}
	if err := crds.Delete(ctx, crd.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group's end", func() error {
		if listed() {
			return errStillValid
		}
		return nil
	})
	eventually(t, "the definition's end", func() error {
		if _, err := crds.Get(ctx, crd.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %w", errors.Join(err, errStillValid))
		}
		if _, err := tabs.List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
			return errStillValid
		}
		return nil
	})
}

func TestAdmission(t *testing.T) {
	w := start(t)
	ctx, k := t.Context(), clients(t, w.Loopback())
	t.Run("pod security", func(t *testing.T) {
		ns := w.namespace(t, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
		_, err := k.CoreV1().Pods(ns).Create(ctx, pod("p"), metav1.CreateOptions{})
		mustContain(t, err, "violates PodSecurity", "restricted", "allowPrivilegeEscalation")
	})
	t.Run("defaults", func(t *testing.T) {
		ns := w.namespace(t, nil)
		class := pod("p")
		class.Spec.PriorityClassName = "system-node-critical"
		got, err := k.CoreV1().Pods(ns).Create(ctx, class, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Spec.ServiceAccountName != "default" || len(got.Spec.Volumes) != 1 || *got.Spec.Priority < 2000000000 || len(got.Spec.Tolerations) != 2 {
			t.Errorf("%+v", got.Spec)
		}
		missing := pod("q")
		missing.Spec.PriorityClassName = "none"
		_, err = k.CoreV1().Pods(ns).Create(ctx, missing, metav1.CreateOptions{})
		mustContain(t, err, "no PriorityClass", "none")
		account := pod("r")
		account.Spec.ServiceAccountName = "none"
		_, err = k.CoreV1().Pods(ns).Create(ctx, account, metav1.CreateOptions{})
		mustContain(t, err, "service account", "not found")
	})
	t.Run("quota", func(t *testing.T) {
		ns := w.namespace(t, nil)
		quotas := k.CoreV1().ResourceQuotas(ns)
		q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/configmaps": resource.MustParse("1")}}}
		q, err := quotas.Create(ctx, q, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// What the quota controller does.
		q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: corev1.ResourceList{"count/configmaps": resource.MustParse("0")}}
		if _, err := quotas.UpdateStatus(ctx, q, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the quota", func() error {
			_, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "c"}}, metav1.CreateOptions{})
			if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota: q") {
				return nil
			}
			return fmt.Errorf("not in force: %w", errors.Join(err, errNotYet("quota")))
		})
	})
	t.Run("limits", func(t *testing.T) {
		ns := w.namespace(t, nil)
		l := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, Default: usage("1", "1Gi")}}}}
		if _, err := k.CoreV1().LimitRanges(ns).Create(ctx, l, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the limit", func() error {
			p := pod("")
			p.GenerateName = "p"
			got, err := k.CoreV1().Pods(ns).Create(ctx, p, metav1.CreateOptions{})
			if err == nil && got.Spec.Containers[0].Resources.Limits.Cpu().Value() != 1 {
				return errNotYet("default limit")
			}
			return err
		})
	})
	t.Run("policy", func(t *testing.T) {
		ns := w.namespace(t, nil)
		admin := k.AdmissionregistrationV1()
		policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "no-bad"}, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
				Operations: []admissionregistrationv1.OperationType{"CREATE"}, Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}}},
			Validations: []admissionregistrationv1.Validation{{Expression: "object.metadata.name != 'bad'", Message: "bad is a bad name"}},
		}}
		if _, err := admin.ValidatingAdmissionPolicies().Create(ctx, policy, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		bind := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "no-bad"}, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: "no-bad", ValidationActions: []admissionregistrationv1.ValidationAction{"Deny"}}}
		if _, err := admin.ValidatingAdmissionPolicyBindings().Create(ctx, bind, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the policy", func() error {
			_, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "bad"}}, metav1.CreateOptions{DryRun: []string{"All"}})
			if err != nil && strings.Contains(err.Error(), "bad is a bad name") {
				return nil
			}
			return fmt.Errorf("not in force: %w", errors.Join(err, errNotYet("policy")))
		})
	})
	t.Run("namespaces", func(t *testing.T) {
		err := k.CoreV1().Namespaces().Delete(ctx, "kube-system", metav1.DeleteOptions{})
		mustContain(t, err, "this namespace may not be deleted")
		_, err = k.CoreV1().ConfigMaps("none").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
		mustContain(t, err, `namespaces "none" not found`)
	})
}

// TestWebhooks: a webhook that names a Service is reached at an endpoint of it,
// though nothing routes its address here.
func TestWebhooks(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, map[string]string{"hooked": "yes"})
	ctx, k := t.Context(), clients(t, w.Loopback())
	hook := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: !strings.HasPrefix(review.Request.Name, "denied"), Result: &metav1.Status{Message: "the hook says no"}}
		if req.URL.Path == "/mutate" {
			review.Response.Patch, review.Response.PatchType = []byte(`[{"op":"add","path":"/data","value":{"hook":"was here"}}]`), ptr.To(admissionv1.PatchTypeJSONPatch)
		}
		json.NewEncoder(rw).Encode(review)
	})
	cert, err := w.keys.Serving("hook", "hook."+ns+".svc").TLS()
	if err != nil {
		t.Fatal(err)
	}
	// An endpoint may not be a loopback address.
	address := hostAddress(t)
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: hook}
	go server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*cert}})) //nolint:errcheck // ends with Close
	defer server.Close()
	port := l.Addr().(*net.TCPAddr).Port
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hook"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}
	if _, err := k.CoreV1().Services(ns).Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "hook", Labels: map[string]string{discoveryv1.LabelServiceName: "hook"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Ports:     []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To(int32(port)), Protocol: ptr.To(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}}}
	if _, err := k.DiscoveryV1().EndpointSlices(ns).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	client := func(path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{CABundle: w.keys.CABundlePEM(), Service: &admissionregistrationv1.ServiceReference{Namespace: ns, Name: "hook", Path: &path}}
	}
	rules := []admissionregistrationv1.RuleWithOperations{{Operations: []admissionregistrationv1.OperationType{"CREATE"},
		Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}
	hooked := &metav1.LabelSelector{MatchLabels: map[string]string{"hooked": "yes"}}
	none := admissionregistrationv1.SideEffectClassNone
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Webhooks: []admissionregistrationv1.MutatingWebhook{{
		Name: "m.example.test", ClientConfig: client("/mutate"), Rules: rules, NamespaceSelector: hooked, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}}}
	if _, err := k.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, mutating, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
		Name: "v.example.test", ClientConfig: client("/validate"), Rules: rules, NamespaceSelector: hooked, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}}}
	if _, err := k.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, validating, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the webhooks", func() error {
		got, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "c"}}, metav1.CreateOptions{})
		if err == nil && got.Data["hook"] != "was here" {
			return errNotYet("mutation")
		}
		return err
	})
	eventually(t, "the validating one", func() error {
		_, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "denied", Name: "denied"}}, metav1.CreateOptions{DryRun: []string{"All"}})
		if err != nil && strings.Contains(err.Error(), "the hook says no") {
			return nil
		}
		return fmt.Errorf("%w", errors.Join(err, errNotYet("denial")))
	})
}

func hostAddress(t *testing.T) string {
	t.Helper()
	ip := hostIP()
	if ip == "" {
		t.Skip("this machine has no address but loopback's, which an endpoint can't be")
	}
	return ip
}
