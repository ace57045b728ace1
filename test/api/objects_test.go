package api

import (
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// TestHostileObjects: names that are paths, metadata at its limit and beyond.
func TestHostileObjects(t *testing.T) {
	ns := namespace(t, "objects")
	c := client(t).CoreV1().ConfigMaps(ns)
	ctx := t.Context()
	for _, name := range []string{"..", ".", "a/b", "../x", "a%2fb", "A", "a\x00", "a\nb", strings.Repeat("a", 254), "-a", "a..b", "ä"} {
		_, err := c.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) {
			t.Errorf("name %.20q: %v", name, err)
		}
	}
	const most = 256 << 10 // upstream's, of keys and values together
	large := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "large", Annotations: map[string]string{"a": strings.Repeat("x", most-1)}}}
	if _, err := c.Create(ctx, large, metav1.CreateOptions{}); err != nil {
		t.Errorf("annotations of 256 KiB: %v", err)
	}
	large.Name = "larger"
	large.Annotations["a"] += "x"
	if _, err := c.Create(ctx, large, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "metadata.annotations: Too long") {
		t.Errorf("annotations of a byte more: %.300v", err)
	}
	many := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "many", Labels: map[string]string{}}}
	for i := range 10_000 {
		many.Labels[fmt.Sprint("l", i)] = "v"
		many.OwnerReferences = append(many.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: fmt.Sprint("p", i), UID: types.UID(fmt.Sprint("u", i))})
	}
	if _, err := c.Create(ctx, many, metav1.CreateOptions{}); err != nil {
		t.Errorf("10,000 labels and owners: %v", err)
	}
	if list, err := c.List(ctx, metav1.ListOptions{LabelSelector: "l1=v,l9999 in (u,v),!l10000"}); err != nil || len(list.Items) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestCostlyRules: expressions and patterns that would take for ever are refused
// where they are written, or ended when they have had their share.
func TestCostlyRules(t *testing.T) {
	c, err := apiextensions.NewForConfig(node.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	kind := func(schema apiextensionsv1.JSONSchemaProps) error {
		_, err := c.ApiextensionsV1().CustomResourceDefinitions().Create(ctx, &apiextensionsv1.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: "costs.test.unipod.dev"},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{
				Group: "test.unipod.dev", Scope: apiextensionsv1.ClusterScoped,
				Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "costs", Singular: "cost", Kind: "Cost"},
				Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{
					OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"x": schema}},
				}}},
			},
		}, metav1.CreateOptions{})
		return err
	}
	list := apiextensionsv1.JSONSchemaProps{Type: "array", Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: &apiextensionsv1.JSONSchemaProps{Type: "string"}}}
	list.XValidations = apiextensionsv1.ValidationRules{{Rule: "self.all(a, self.all(b, self.all(c, a + b != c)))"}}
	if err := kind(list); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "estimated rule cost exceeds budget") {
		t.Errorf("a rule of three loops: %.300v", err)
	}
	for _, pattern := range []string{"((((a{1000}){1000}){1000}){1000})", "(" + strings.Repeat("(a*)*", 1000), "a{2000}"} {
		if err := kind(apiextensionsv1.JSONSchemaProps{Type: "string", Pattern: pattern}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "pattern") {
			t.Errorf("pattern %.30s: %.300v", pattern, err)
		}
	}
	deep := apiextensionsv1.JSONSchemaProps{Type: "string"}
	for range 100 {
		deep = apiextensionsv1.JSONSchemaProps{Type: "array", Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: deep.DeepCopy()}}
	}
	if err := kind(deep); err == nil {
		_ = c.ApiextensionsV1().CustomResourceDefinitions().Delete(ctx, "costs.test.unipod.dev", metav1.DeleteOptions{})
	} else if apierrors.IsInternalError(err) {
		t.Errorf("100 lists in lists: %.300v", err)
	}
	served(t)

	// What a policy costs shows when it is asked.
	ns := namespace(t, "costly")
	policies := inProcess(t).AdmissionregistrationV1()
	policy, err := policies.ValidatingAdmissionPolicies().Create(ctx, &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "costly"},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: ptr.To(admissionregistrationv1.Fail),
			MatchConstraints: &admissionregistrationv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}},
				ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{"CREATE"}, Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
				}}},
			},
			Validations: []admissionregistrationv1.Validation{{Expression: "object.data.all(a, object.data.all(b, object.data.all(c, object.data.all(d, a + b + c != d))))"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer policies.ValidatingAdmissionPolicies().Delete(ctx, policy.Name, metav1.DeleteOptions{}) //nolint:errcheck // the server ends with the tests
	_, err = policies.ValidatingAdmissionPolicyBindings().Create(ctx, &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "costly"},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: policy.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer policies.ValidatingAdmissionPolicyBindings().Delete(ctx, "costly", metav1.DeleteOptions{}) //nolint:errcheck // likewise
	data := map[string]string{}
	for i := range 300 {
		data[fmt.Sprint("k", i)] = "v"
	}
	maps := client(t).CoreV1().ConfigMaps(ns)
	i := 0
	until(t, "the policy is in force", func() bool {
		i++
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", i)}, Data: data}, metav1.CreateOptions{})
		return err != nil
	})
	if !strings.Contains(err.Error(), "operation cancelled: actual cost limit exceeded") && !strings.Contains(err.Error(), "budget") {
		t.Errorf("a policy of four loops over 300: %.300v", err)
	}
	served(t)
}
