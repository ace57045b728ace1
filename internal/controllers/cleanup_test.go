package controllers_test

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

func TestGarbageCollector(t *testing.T) {
	s := newSpace(t)
	sets := func() int {
		list, err := s.AppsV1().ReplicaSets(s.ns).List(s.ctx, metav1.ListOptions{})
		s.must(err)
		return len(list.Items)
	}
	gone := func(name string) bool {
		_, err := s.AppsV1().Deployments(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}
	for _, how := range []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground} {
		s.deployment("web", 2)
		s.rolledOut("web", "example.com/i:1", 2)
		s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, "web", metav1.DeleteOptions{PropagationPolicy: &how}))
		s.until(string(how)+": dependents go", func() bool { return gone("web") && sets() == 0 && len(s.pods()) == 0 })
	}

	s.deployment("web", 2)
	s.rolledOut("web", "example.com/i:1", 2)
	how := metav1.DeletePropagationOrphan
	s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, "web", metav1.DeleteOptions{PropagationPolicy: &how}))
	s.until("the Deployment goes", func() bool { return gone("web") })
	list, err := s.AppsV1().ReplicaSets(s.ns).List(s.ctx, metav1.ListOptions{})
	s.must(err)
	if len(list.Items) != 1 || len(list.Items[0].OwnerReferences) != 0 || s.count(running) != 2 {
		t.Errorf("orphaned: %d ReplicaSets, %d pods run", len(list.Items), s.count(running))
	}
}

// What a custom resource owns goes with it, of a kind that wasn't there when the
// collector started, and of one that was there before, went and is back.
func TestGarbageOfCustomResources(t *testing.T) {
	s := newSpace(t)
	crds := apiextensionsclient.NewForConfigOrDie(it.config).ApiextensionsV1().CustomResourceDefinitions()
	names := apiextensions.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: "Widget", ListKind: "WidgetList"}
	widgets := dynamic.NewForConfigOrDie(it.config).Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}).Namespace(s.ns)
	for _, how := range []metav1.DeletionPropagation{metav1.DeletePropagationForeground, metav1.DeletePropagationBackground, metav1.DeletePropagationForeground} {
		_, err := crds.Create(s.ctx, &apiextensions.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"},
			Spec: apiextensions.CustomResourceDefinitionSpec{Group: "example.com", Names: names, Scope: apiextensions.NamespaceScoped,
				Versions: []apiextensions.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
					Schema: &apiextensions.CustomResourceValidation{OpenAPIV3Schema: &apiextensions.JSONSchemaProps{Type: "object"}}}}},
		}, metav1.CreateOptions{})
		s.must(err)
		var owner *unstructured.Unstructured
		s.until("widgets are served", func() bool {
			owner, err = widgets.Create(s.ctx, &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "example.com/v1", "kind": "Widget", "metadata": map[string]any{"name": "w"},
			}}, metav1.CreateOptions{})
			return err == nil
		})
		_, err = s.CoreV1().ConfigMaps(s.ns).Create(s.ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "of-w",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Widget", Name: "w", UID: owner.GetUID(), BlockOwnerDeletion: ptr(true)}}}}, metav1.CreateOptions{})
		s.must(err)
		s.must(widgets.Delete(s.ctx, "w", metav1.DeleteOptions{PropagationPolicy: &how}))
		s.until("it and what it owned go", func() bool {
			_, errW := widgets.Get(s.ctx, "w", metav1.GetOptions{})
			_, errC := s.CoreV1().ConfigMaps(s.ns).Get(s.ctx, "of-w", metav1.GetOptions{})
			return apierrors.IsNotFound(errW) && apierrors.IsNotFound(errC)
		})
		s.must(crds.Delete(s.ctx, "widgets.example.com", metav1.DeleteOptions{}))
		s.until("the kind goes", func() bool {
			_, err := crds.Get(s.ctx, "widgets.example.com", metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	}
}

func TestNamespace(t *testing.T) {
	s := newSpace(t)
	s.deployment("web", 2)
	s.rolledOut("web", "example.com/i:1", 2)
	s.must(s.CoreV1().Namespaces().Delete(s.ctx, s.ns, metav1.DeleteOptions{}))
	s.until("the namespace and all in it go", func() bool {
		_, err := s.CoreV1().Namespaces().Get(s.ctx, s.ns, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if n := len(s.pods()); n != 0 {
		t.Errorf("%d pods are left", n)
	}
}
