package manifest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const mixed = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: i}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
- apiVersion: example.com/v1
  kind: Widget
  metadata: {generateName: w-}
  anything: {goes: [here]}
---
{"apiVersion": "batch/v1", "kind": "JobList", "items": [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
  "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}]}
`

func readText(t *testing.T, text string) (*Set, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Read([]string{path}, nil)
}

// Objects of any kind are read as they were written, in order.
func TestRead(t *testing.T) {
	set, err := readText(t, mixed)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range set.Objects {
		place := o.At("")
		got = append(got, fmt.Sprintf("%s %s%s %d:%d", o.GetKind(), o.GetName(), o.GetGenerateName(), place.Document, place.Line))
		if o.GetUID() != "" || !o.GetCreationTimestamp().Time.IsZero() {
			t.Errorf("%s: what a server sets is set", o.GetKind())
		}
	}
	want := []string{"Namespace shop 1:1", "Deployment web 2:5", "Service web 3:19", "Widget w- 3:20", "Job j 4:25"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Everything wrong is told at its place, of kinds that Kubernetes has itself.
func TestReadBad(t *testing.T) {
	_, err := readText(t, `apiVersion: apps/v1
kind: Deployment
metadata: {name: Web}
spec:
  replicas: many
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: -1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: other}}
    spec:
      containers:
      - {name: c, image: i, comand: [x]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 80000
---
apiVersion: apps/v1
kind: Deployment
metadata: {labels: {a: b}}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
type: kubernetes.io/tls
stringData: {very: private}
---
apiVersion: a/b/c
kind: Odd
metadata: {name: o}
`)
	if err == nil {
		t.Fatal("it passed")
	}
	text := err.Error()
	for _, want := range []string{
		"all.yaml:5: document 1, Deployment Web: spec.replicas: expected a number, got string",
		"all.yaml:11: document 2, Deployment web: spec.replicas: Invalid value: -1",
		"all.yaml:14: document 2, Deployment web: spec.template.metadata.labels: Invalid value",
		"all.yaml:17: document 2, Deployment web: spec.template.spec.containers[0].comand: unknown field",
		"all.yaml:24: document 3, Service web: spec.ports[0].port: Invalid value: 80000",
		"document 4, Deployment: metadata.name: Required value",
		"document 5, Secret s: data[tls.crt]: Required value",
		"all.yaml:36: document 6, Odd o: apiVersion: unexpected GroupVersion string",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "private") {
		t.Errorf("a Secret's value is told:\n%s", text)
	}
}

// What a server says is told at the same places.
func TestErrors(t *testing.T) {
	set, err := readText(t, mixed)
	if err != nil {
		t.Fatal(err)
	}
	web := set.Objects[1]
	for _, tc := range []struct {
		err  error
		want []string
	}{
		{apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "web", field.ErrorList{
			field.Invalid(field.NewPath("spec", "selector"), "x", "no good"), field.Required(field.NewPath("metadata", "name"), ""),
		}), []string{`:9: document 2, Deployment shop/web: spec.selector: Invalid value: "x": no good`, ":7: document 2, Deployment shop/web: metadata.name: Required value"}},
		{apierrors.NewBadRequest(`Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.template.spec.containers[0].comand", duplicate field "spec"`),
			[]string{":14: document 2, Deployment shop/web: spec.template.spec.containers[0].comand: unknown field", ":8: document 2, Deployment shop/web: spec: duplicate field"}},
		{apierrors.NewForbidden(schema.GroupResource{Resource: "deployments"}, "web", fmt.Errorf("quota")),
			[]string{`:5: document 2, Deployment shop/web: deployments "web" is forbidden: quota`}},
		{fmt.Errorf("no route to it"), []string{":5: document 2, Deployment shop/web: no route to it"}},
	} {
		var got []string
		for _, e := range web.Errors(tc.err) {
			got = append(got, strings.TrimPrefix(e.Error(), web.At("").File))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Error(diff)
		}
	}
}
