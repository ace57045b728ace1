package manifest

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// checkReferences warns of ConfigMaps and Secrets that pods need and the input
// doesn't have. It is no error: the pod waits for them, as in a cluster.
func (r *reader) checkReferences() {
	for i, pod := range r.objects.Pods {
		it := r.pods[i]
		need := func(kind, name, path string, optional *bool) {
			key := types.NamespacedName{Namespace: pod.Namespace, Name: name}
			_, ok := r.objects.ConfigMaps[key]
			if kind == "Secret" {
				_, ok = r.objects.Secrets[key]
			}
			if !ok && name != "" && (optional == nil || !*optional) {
				r.warn(it, path, "%s %q is not in the input", kind, key)
			}
		}
		references(&pod.Spec, need)
	}
}

// references calls need for every ConfigMap and Secret that the pod names.
func references(spec *v1.PodSpec, need func(kind, name, path string, optional *bool)) {
	for i, ref := range spec.ImagePullSecrets {
		need("Secret", ref.Name, fmt.Sprintf("spec.imagePullSecrets[%d]", i), nil)
	}
	for i, v := range spec.Volumes {
		path := fmt.Sprintf("spec.volumes[%d]", i)
		switch {
		case v.ConfigMap != nil:
			need("ConfigMap", v.ConfigMap.Name, path+".configMap.name", v.ConfigMap.Optional)
		case v.Secret != nil:
			need("Secret", v.Secret.SecretName, path+".secret.secretName", v.Secret.Optional)
		case v.Projected != nil:
			for j, s := range v.Projected.Sources {
				path := fmt.Sprintf("%s.projected.sources[%d]", path, j)
				if s.ConfigMap != nil {
					need("ConfigMap", s.ConfigMap.Name, path+".configMap.name", s.ConfigMap.Optional)
				}
				if s.Secret != nil {
					need("Secret", s.Secret.Name, path+".secret.name", s.Secret.Optional)
				}
			}
		}
	}
	lists := []struct {
		path       string
		containers []v1.Container
	}{{"spec.initContainers", spec.InitContainers}, {"spec.containers", spec.Containers}}
	for _, list := range lists {
		for i := range list.containers {
			containerReferences(&list.containers[i], fmt.Sprintf("%s[%d]", list.path, i), need)
		}
	}
}

func containerReferences(c *v1.Container, path string, need func(kind, name, path string, optional *bool)) {
	for i, from := range c.EnvFrom {
		path := fmt.Sprintf("%s.envFrom[%d]", path, i)
		if ref := from.ConfigMapRef; ref != nil {
			need("ConfigMap", ref.Name, path+".configMapRef.name", ref.Optional)
		}
		if ref := from.SecretRef; ref != nil {
			need("Secret", ref.Name, path+".secretRef.name", ref.Optional)
		}
	}
	for i, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		path := fmt.Sprintf("%s.env[%d].valueFrom", path, i)
		if ref := e.ValueFrom.ConfigMapKeyRef; ref != nil {
			need("ConfigMap", ref.Name, path+".configMapKeyRef.name", ref.Optional)
		}
		if ref := e.ValueFrom.SecretKeyRef; ref != nil {
			need("Secret", ref.Name, path+".secretKeyRef.name", ref.Optional)
		}
	}
}
