package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
)

// hookServer answers over https at a URL, with a certificate of the authority.
func (w *world) hookServer(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	cert, err := w.keys.Serving("hook", "127.0.0.1").TLS()
	if err != nil {
		t.Fatal(err)
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	s.TLS.Certificates = append(s.TLS.Certificates[:0], *cert)
	t.Cleanup(s.Close)
	return s
}

func rulesOf(resource string, operations ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
	return []admissionregistrationv1.RuleWithOperations{{Operations: operations,
		Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{resource}}}}
}

// Webhooks at a URL change and refuse; what is wrong with one is told to whoever
// it holds up, or nobody is held up.
func TestWebhooksByURL(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, map[string]string{"hooked": "by-url"})
	ctx, k := t.Context(), clients(t, w.Loopback())
	server := w.hookServer(t, func(rw http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil {
			t.Error(err)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		switch req.URL.Path {
		case "/mutate":
			review.Response.Patch, review.Response.PatchType = []byte(`[{"op":"add","path":"/data","value":{"hook":"was here"}}]`), ptr.To(admissionv1.PatchTypeJSONPatch)
		case "/validate":
			var cm corev1.ConfigMap
			if err := json.Unmarshal(review.Request.Object.Raw, &cm); err != nil || cm.Data["hook"] != "was here" {
				review.Response.Allowed, review.Response.Result = false, &metav1.Status{Message: "not changed before"}
			}
			if review.Request.Operation == admissionv1.Delete || review.Request.Name == "denied" {
				review.Response.Allowed, review.Response.Result = false, &metav1.Status{Message: "the hook says no", Code: http.StatusTeapot}
			}
			review.Response.Warnings = []string{"it was looked at"}
		case "/nonsense":
			fmt.Fprint(rw, "what?")
			return
		}
		if err := json.NewEncoder(rw).Encode(review); err != nil {
			t.Error(err)
		}
	})
	none := admissionregistrationv1.SideEffectClassNone
	at := func(path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{CABundle: w.keys.CABundlePEM(), URL: ptr.To(server.URL + path)}
	}
	hooked := &metav1.LabelSelector{MatchLabels: map[string]string{"hooked": "by-url"}}
	hooks := k.AdmissionregistrationV1()
	_, err := hooks.MutatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "by-url"}, Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "m.by-url.test", ClientConfig: at("/mutate"), Rules: rulesOf("configmaps", "CREATE"), NamespaceSelector: hooked, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	validating := func(name string, c admissionregistrationv1.WebhookClientConfig, resource string, fails admissionregistrationv1.FailurePolicyType, operations ...admissionregistrationv1.OperationType) {
		t.Helper()
		_, err := hooks.ValidatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
				Name: name + ".by-url.test", ClientConfig: c, Rules: rulesOf(resource, operations...), NamespaceSelector: hooked, FailurePolicy: &fails,
				SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, TimeoutSeconds: ptr.To[int32](5)}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = hooks.ValidatingWebhookConfigurations().Delete(context.Background(), name, metav1.DeleteOptions{})
		})
	}
	t.Cleanup(func() {
		_ = hooks.MutatingWebhookConfigurations().Delete(context.Background(), "by-url", metav1.DeleteOptions{})
	})
	const fail, ignore = admissionregistrationv1.Fail, admissionregistrationv1.Ignore
	validating("checks", at("/validate"), "configmaps", fail, "CREATE", "DELETE")
	cm := func(name string) error {
		got, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{DryRun: []string{"All"}})
		if err == nil && got.Data["hook"] != "was here" {
			return errNotYet("mutation")
		}
		return err
	}
	eventually(t, "the mutating webhook", func() error { return cm("fine") })
	refused := func(what string, do func() error, parts ...string) {
		t.Helper()
		eventually(t, what, func() error {
			err := do()
			for _, p := range parts {
				if err == nil || !strings.Contains(err.Error(), p) {
					return errors.Join(err, errNotYet(p))
				}
			}
			return nil
		})
	}
	refused("the validating webhook", func() error { return cm("denied") }, "the hook says no", "checks.by-url.test")
	if _, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	refused("a deletion", func() error { return k.CoreV1().ConfigMaps(ns).Delete(ctx, "kept", metav1.DeleteOptions{}) }, "the hook says no")

	// What is wrong with a webhook, by kinds of their own.
	account := func() error {
		_, err := k.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "a"}}, metav1.CreateOptions{})
		return err
	}
	endpoints := func() error {
		//lint:ignore SA1019 any kind would do
		_, err := k.CoreV1().Endpoints(ns).Create(ctx, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{GenerateName: "e"}}, metav1.CreateOptions{})
		return err
	}
	template := func() error {
		_, err := k.CoreV1().PodTemplates(ns).Create(ctx, &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{GenerateName: "t"}, Template: corev1.PodTemplateSpec{Spec: pod("p").Spec}}, metav1.CreateOptions{})
		return err
	}
	limits := func() error {
		_, err := k.CoreV1().LimitRanges(ns).Create(ctx, &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{GenerateName: "l"}}, metav1.CreateOptions{})
		return err
	}
	claim := func() error {
		_, err := k.CoreV1().ResourceQuotas(ns).Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{GenerateName: "q"}}, metav1.CreateOptions{})
		return err
	}
	stranger := at("/validate")
	stranger.CABundle = newAuthority(t).CABundlePEM()
	nobody := at("/validate")
	nobody.URL = ptr.To("https://127.0.0.1:1/validate")
	noService := admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: ns, Name: "nothing"}, CABundle: w.keys.CABundlePEM()}
	validating("stranger", stranger, "serviceaccounts", fail, "CREATE")
	validating("nonsense", at("/nonsense"), "endpoints", fail, "CREATE")
	validating("no-service", noService, "podtemplates", fail, "CREATE")
	validating("nobody", nobody, "limitranges", fail, "CREATE")
	refused("a webhook of another authority", account, `failed calling webhook "stranger.by-url.test"`, "certificate signed by unknown authority")
	refused("one that talks nonsense", endpoints, `failed calling webhook "nonsense.by-url.test"`)
	refused("one of a Service that isn't there", template, `failed calling webhook "no-service.by-url.test"`, `service "nothing" not found`)
	refused("one that doesn't answer", limits, `failed calling webhook "nobody.by-url.test"`, "connection refused")
	validating("ignored", nobody, "resourcequotas", ignore, "CREATE")
	if err := claim(); err != nil {
		t.Errorf("a webhook that may fail: %v", err)
	}
}

// Policies change objects: by what they apply and by patches, with parameters.
func TestMutatingAdmissionPolicy(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, map[string]string{"mutated": "yes"})
	ctx, k := t.Context(), clients(t, w.Loopback())
	admin := k.AdmissionregistrationV1()
	if _, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"team": "blue"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	policy := func(name, resource string, params *admissionregistrationv1.ParamKind, mutations ...admissionregistrationv1.Mutation) {
		t.Helper()
		_, err := admin.MutatingAdmissionPolicies().Create(ctx, &admissionregistrationv1.MutatingAdmissionPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
				ParamKind: params, ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy, FailurePolicy: ptr.To(admissionregistrationv1.Fail),
				MatchConstraints: &admissionregistrationv1.MatchResources{
					NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"mutated": "yes"}},
					ResourceRules:     []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: rulesOf(resource, "CREATE")[0]}},
				},
				MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "not-left-alone", Expression: "object.metadata.?name.orValue('') != 'left-alone'"}},
				Mutations:       mutations,
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		bind := &admissionregistrationv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{PolicyName: name}}
		if params != nil {
			bind.Spec.ParamRef = &admissionregistrationv1.ParamRef{Name: "settings", ParameterNotFoundAction: ptr.To(admissionregistrationv1.DenyAction)}
		}
		if _, err := admin.MutatingAdmissionPolicyBindings().Create(ctx, bind, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = admin.MutatingAdmissionPolicyBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
			_ = admin.MutatingAdmissionPolicies().Delete(context.Background(), name, metav1.DeleteOptions{})
		})
	}
	policy("label", "pods", &admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
		admissionregistrationv1.Mutation{PatchType: admissionregistrationv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{
			Expression: `Object{metadata: Object.metadata{labels: Object.metadata.labels{team: params.data["team"]}}, spec: Object.spec{initContainers: [Object.spec.initContainers{name: "first", image: "example.test/first:1"}]}}`,
		}},
		admissionregistrationv1.Mutation{PatchType: admissionregistrationv1.PatchTypeJSONPatch, JSONPatch: &admissionregistrationv1.JSONPatch{
			Expression: `[JSONPatch{op: "add", path: "/metadata/annotations/" + jsonpatch.escapeKey("example.test/seen"), value: "yes"}]`,
		}})
	annotated := func(name string) *corev1.Pod {
		p := pod(name)
		p.Annotations = map[string]string{"there": "before"}
		return p
	}
	eventually(t, "the policy", func() error {
		got, err := k.CoreV1().Pods(ns).Create(ctx, annotated("p"), metav1.CreateOptions{DryRun: []string{"All"}})
		if err != nil {
			return err
		}
		if got.Labels["team"] != "blue" || got.Annotations["example.test/seen"] != "yes" || len(got.Spec.InitContainers) != 1 || got.Labels["app"] != "p" {
			return fmt.Errorf("it became %v %v: %w", got.ObjectMeta, got.Spec.InitContainers, errNotYet("mutation"))
		}
		return nil
	})
	if got, err := k.CoreV1().Pods(ns).Create(ctx, annotated("left-alone"), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil || got.Labels["team"] != "" {
		t.Errorf("what doesn't match: %v, %v", got, err)
	}
	policy("wrong", "services", nil, admissionregistrationv1.Mutation{PatchType: admissionregistrationv1.PatchTypeJSONPatch, JSONPatch: &admissionregistrationv1.JSONPatch{
		Expression: `[JSONPatch{op: "add", path: "/spec/nowhere/else", value: "x"}]`,
	}})
	eventually(t, "a policy that can't be carried out", func() error {
		_, err := k.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{GenerateName: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}}, metav1.CreateOptions{DryRun: []string{"All"}})
		if err == nil || !strings.Contains(err.Error(), "wrong") {
			return errors.Join(err, errNotYet("refusal that names the policy"))
		}
		return nil
	})
}

// A custom resource of two versions, which a webhook converts: v1 has
// spec.cron, v2 spec.schedule. v1 is stored.
func TestConversionWebhook(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx := t.Context()
	server := w.hookServer(t, convert(t))
	definitions, err := apiextensionsclient.NewForConfig(w.Loopback())
	if err != nil {
		t.Fatal(err)
	}
	crds := definitions.ApiextensionsV1().CustomResourceDefinitions()
	version := func(name, field string, stored bool) apiextensionsv1.CustomResourceDefinitionVersion {
		return apiextensionsv1.CustomResourceDefinitionVersion{Name: name, Served: true, Storage: stored,
			Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
			Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{
				"spec": {Type: "object", Required: []string{field}, Properties: map[string]apiextensionsv1.JSONSchemaProps{field: {Type: "string"}}}}}}}
	}
	crd := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "alarms.convert.test"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "convert.test", Scope: apiextensionsv1.NamespaceScoped,
			Names:    apiextensionsv1.CustomResourceDefinitionNames{Plural: "alarms", Singular: "alarm", Kind: "Alarm", ListKind: "AlarmList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", "cron", true), version("v2", "schedule", false)},
			Conversion: &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
				ConversionReviewVersions: []string{"v1"},
				ClientConfig:             &apiextensionsv1.WebhookClientConfig{URL: ptr.To(server.URL + "/convert"), CABundle: w.keys.CABundlePEM()},
			}},
		},
	}
	if _, err := crds.Create(ctx, crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = crds.Delete(context.Background(), crd.Name, metav1.DeleteOptions{}) })
	client := dynamicClient(t, w.admin(t))
	alarms := func(version string) dynamic.ResourceInterface {
		return client.Resource(schema.GroupVersionResource{Group: "convert.test", Version: version, Resource: "alarms"}).Namespace(ns)
	}
	alarm := func(version, name, field, value string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "convert.test/" + version, "kind": "Alarm",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{field: value}}}
	}
	says := func(o *unstructured.Unstructured, err error, version, field, value string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := unstructured.NestedString(o.Object, "spec", field); got != value || o.GetAPIVersion() != "convert.test/"+version {
			t.Errorf("it is %v, want %s with %s %s", o.Object, version, field, value)
		}
	}
	eventually(t, "the kind", func() error {
		_, err := alarms("v1").Create(ctx, alarm("v1", "a", "cron", "daily"), metav1.CreateOptions{})
		return err
	})
	got, err := alarms("v2").Get(ctx, "a", metav1.GetOptions{})
	says(got, err, "v2", "schedule", "daily")
	got, err = alarms("v2").Create(ctx, alarm("v2", "b", "schedule", "weekly"), metav1.CreateOptions{})
	says(got, err, "v2", "schedule", "weekly")
	got, err = alarms("v1").Get(ctx, "b", metav1.GetOptions{})
	says(got, err, "v1", "cron", "weekly")
	got, err = alarms("v2").Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"schedule":"hourly"}}`), metav1.PatchOptions{})
	says(got, err, "v2", "schedule", "hourly")
	got, err = alarms("v2").Apply(ctx, "a", alarm("v2", "a", "schedule", "yearly"), metav1.ApplyOptions{FieldManager: "op", Force: true})
	says(got, err, "v2", "schedule", "yearly")
	got, err = alarms("v1").Apply(ctx, "a", alarm("v1", "a", "cron", "never"), metav1.ApplyOptions{FieldManager: "other", Force: true})
	says(got, err, "v1", "cron", "never")
	list, err := alarms("v2").List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	says(&list.Items[1], nil, "v2", "schedule", "weekly")
	events, err := alarms("v2").Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	if _, err := alarms("v1").Patch(ctx, "b", types.MergePatchType, []byte(`{"spec":{"cron":"soon"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	e := <-events.ResultChan()
	says(e.Object.(*unstructured.Unstructured), nil, "v2", "schedule", "soon")

	_, err = alarms("v2").Create(ctx, alarm("v2", "c", "schedule", "unconvertible"), metav1.CreateOptions{})
	mustContain(t, err, "conversion webhook", "no such time")
	// Where it can't be asked, who asks for the stored version isn't held up.
	patch := func(to map[string]any) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"spec": map[string]any{"conversion": map[string]any{"webhook": map[string]any{"clientConfig": to}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := crds.Patch(ctx, crd.Name, types.MergePatchType, text, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, broken := range []struct {
		to   map[string]any
		says string
	}{
		{map[string]any{"url": "https://127.0.0.1:1/convert"}, "connection refused"},
		{map[string]any{"url": nil, "service": map[string]any{"namespace": ns, "name": "nothing", "path": "/convert"}}, `service "nothing" not found`},
	} {
		patch(broken.to)
		eventually(t, broken.says, func() error {
			_, err := alarms("v2").Get(ctx, "a", metav1.GetOptions{})
			if err == nil || !strings.Contains(err.Error(), broken.says) || !strings.Contains(err.Error(), "conversion webhook") {
				return errors.Join(err, errNotYet(broken.says))
			}
			return nil
		})
		got, err = alarms("v1").Get(ctx, "a", metav1.GetOptions{})
		says(got, err, "v1", "cron", "never")
	}
}

// convert is the webhook of TestConversionWebhook.
func convert(t *testing.T) http.HandlerFunc {
	return func(rw http.ResponseWriter, req *http.Request) {
		var review apiextensionsv1.ConversionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil {
			t.Error(err)
			return
		}
		r := &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
		for _, raw := range review.Request.Objects {
			o := &unstructured.Unstructured{}
			if err := o.UnmarshalJSON(raw.Raw); err != nil {
				t.Error(err)
			}
			from, to := "cron", "schedule"
			if review.Request.DesiredAPIVersion == "convert.test/v1" {
				from, to = to, from
			}
			if v, ok, _ := unstructured.NestedString(o.Object, "spec", from); ok {
				if v == "unconvertible" {
					r.ConvertedObjects, r.Result = nil, metav1.Status{Status: metav1.StatusFailure, Message: "no such time"}
					break
				}
				unstructured.RemoveNestedField(o.Object, "spec", from)
				_ = unstructured.SetNestedField(o.Object, v, "spec", to)
			}
			o.SetAPIVersion(review.Request.DesiredAPIVersion)
			r.ConvertedObjects = append(r.ConvertedObjects, runtime.RawExtension{Object: o})
		}
		review.Request, review.Response = nil, r
		if err := json.NewEncoder(rw).Encode(review); err != nil {
			t.Error(err)
		}
	}
}
