package manifest

import (
	"reflect"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestEveryFieldHasAVerdict walks the types whose fields the table lists one by
// one. It fails when Kubernetes has a field that nobody has decided on, and
// when the table has one that Kubernetes doesn't.
func TestEveryFieldHasAVerdict(t *testing.T) {
	listed := map[string]any{
		"":                                   v1.Pod{},
		"metadata":                           metav1.ObjectMeta{},
		"spec":                               v1.PodSpec{},
		"spec.affinity":                      v1.Affinity{},
		"spec.affinity.nodeAffinity":         v1.NodeAffinity{},
		"spec.securityContext":               v1.PodSecurityContext{},
		"spec.volumes[]":                     v1.Volume{},
		"spec.volumes[].projected":           v1.ProjectedVolumeSource{},
		"spec.volumes[].projected.sources[]": v1.VolumeProjection{},
	}
	for _, c := range []string{"spec.containers[]", "spec.initContainers[]"} {
		listed[c] = v1.Container{}
		listed[c+".resources"] = v1.ResourceRequirements{}
		listed[c+".securityContext"] = v1.SecurityContext{}
	}
	exist := map[string]bool{}
	for path, of := range listed {
		for _, field := range jsonFields(reflect.TypeOf(of)) {
			p := join(path, field)
			exist[p] = true
			if _, ok := podFields[p]; ok {
				continue
			}
			// Otherwise its own fields must be listed.
			if _, ok := listed[p]; ok {
				continue
			}
			if _, ok := listed[p+"[]"]; ok {
				continue
			}
			t.Errorf("%s has no verdict", p)
		}
	}
	for p := range podFields {
		if !exist[p] {
			t.Errorf("%s has a verdict, but Kubernetes has no such field", p)
		}
	}
}

func jsonFields(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && (f.Anonymous || strings.Contains(options, "inline")) {
			names = append(names, jsonFields(f.Type)...)
			continue
		}
		names = append(names, name)
	}
	return names
}
