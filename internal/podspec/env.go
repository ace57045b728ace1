package podspec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	podshelper "k8s.io/kubernetes/pkg/apis/core/pods"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// EnvVar is one variable of a container's environment. Values may be secrets:
// they are never logged.
type EnvVar struct{ Name, Value string }

// EnvOptions is what an environment depends on beside its pod and the node.
type EnvOptions struct {
	Objects Objects
	// PodIPs are the pod's addresses; empty before it has any.
	PodIPs []string
	// Services are the cluster's; those the pod may see become variables.
	Services []*v1.Service
	// EnvFile finds a key in an environment file of a mounted volume
	// (fileKeyRef); ok says whether it is there.
	EnvFile func(volume, path, key string) (value string, ok bool, err error)
}

// Environment resolves a container's environment: envFrom in order, then env
// in order, each value seeing those before it, then the variables of services.
// A later variable replaces an earlier one of the same name. The error is a
// *[ConfigError].
func Environment(node *Node, pod *v1.Pod, c *v1.Container, o EnvOptions) ([]EnvVar, error) {
	r := &resolver{node: node, pod: pod, container: c, EnvOptions: o,
		configMaps: map[string]*v1.ConfigMap{}, secrets: map[string]*v1.Secret{},
		values: map[string]string{}, services: serviceEnv(pod, o.Services)}
	env, err := r.resolve()
	if err != nil {
		return nil, &ConfigError{Container: c.Name, Err: err}
	}
	return env, nil
}

// resolver builds one environment. An object is fetched once, so that all
// variables come from the same version of it.
type resolver struct {
	EnvOptions
	node       *Node
	pod        *v1.Pod
	container  *v1.Container
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret

	order    []string
	values   map[string]string
	services map[string]string
}

func (r *resolver) set(name, value string) {
	if _, ok := r.values[name]; !ok {
		r.order = append(r.order, name)
	}
	r.values[name] = value
}

func (r *resolver) resolve() ([]EnvVar, error) {
	for _, from := range r.container.EnvFrom {
		data, err := r.envFrom(from)
		if err != nil {
			return nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(data)) {
			r.set(from.Prefix+key, data[key])
		}
	}
	mapping := expansion.MappingFuncFor(r.values, r.services)
	for _, e := range r.container.Env {
		switch {
		case e.Value != "":
			r.set(e.Name, expansion.Expand(e.Value, mapping))
		case e.ValueFrom != nil:
			value, ok, err := r.valueFrom(e.ValueFrom)
			if err != nil {
				return nil, err
			}
			if ok {
				r.set(e.Name, value)
			}
		default:
			r.set(e.Name, "")
		}
	}
	var env []EnvVar
	for _, name := range r.order {
		env = append(env, EnvVar{name, r.values[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(r.services)) {
		if _, ok := r.values[name]; !ok {
			env = append(env, EnvVar{name, r.services[name]})
		}
	}
	return env, nil
}

func (r *resolver) envFrom(from v1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := r.configMap(from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		if err != nil || cm == nil {
			return nil, err
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		secret, err := r.secret(from.SecretRef.Name, from.SecretRef.Optional)
		if err != nil || secret == nil {
			return nil, err
		}
		data := make(map[string]string, len(secret.Data))
		for k, v := range secret.Data {
			data[k] = string(v)
		}
		return data, nil
	}
	return nil, nil
}

// valueFrom resolves one reference; ok is false when it is optional and leads
// nowhere.
func (r *resolver) valueFrom(from *v1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = r.field(from.FieldRef)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = r.resource(from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := r.configMap(ref.Name, ref.Optional)
		if err != nil || cm == nil {
			return "", false, err
		}
		if value, ok = cm.Data[ref.Key]; !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, r.pod.Namespace, ref.Name)
		}
		return value, ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		secret, err := r.secret(ref.Name, ref.Optional)
		if err != nil || secret == nil {
			return "", false, err
		}
		data, ok := secret.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, r.pod.Namespace, ref.Name)
		}
		return string(data), ok, nil
	case from.FileKeyRef != nil:
		return r.file(from.FileKeyRef)
	}
	return "", true, nil
}

func (r *resolver) file(ref *v1.FileKeySelector) (string, bool, error) {
	if r.EnvFile == nil {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	value, ok, err := r.EnvFile(ref.VolumeName, ref.Path, ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	if !ok && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
	}
	return value, ok, nil
}

// configMap returns nil without error for an optional object that is missing.
func (r *resolver) configMap(name string, optional *bool) (*v1.ConfigMap, error) {
	if cm, ok := r.configMaps[name]; ok {
		return cm, nil
	}
	cm, err := r.Objects.ConfigMap(r.pod.Namespace, name)
	if err != nil {
		if apierrors.IsNotFound(err) && isTrue(optional) {
			return nil, nil
		}
		return nil, err
	}
	r.configMaps[name] = cm
	return cm, nil
}

func (r *resolver) secret(name string, optional *bool) (*v1.Secret, error) {
	if secret, ok := r.secrets[name]; ok {
		return secret, nil
	}
	secret, err := r.Objects.Secret(r.pod.Namespace, name)
	if err != nil {
		if apierrors.IsNotFound(err) && isTrue(optional) {
			return nil, nil
		}
		return nil, err
	}
	r.secrets[name] = secret
	return secret, nil
}

// field is the value of a downward API field. Those that the pod's stored
// status may not have yet come from the node and the sandbox.
func (r *resolver) field(ref *v1.ObjectFieldSelector) (string, error) {
	path, _, err := podshelper.ConvertDownwardAPIFieldLabel(ref.APIVersion, ref.FieldPath, "")
	if err != nil {
		return "", err
	}
	podIPs := SortPodIPs(r.node, r.PodIPs)
	switch path {
	case "spec.nodeName":
		return r.pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return r.pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		if len(r.node.HostIPs) == 0 {
			return "", fmt.Errorf("%s: the node has no address", path)
		}
		if path == "status.hostIP" {
			return r.node.HostIPs[0], nil
		}
		return strings.Join(r.node.HostIPs, ","), nil
	case "status.podIP":
		if len(podIPs) == 0 {
			return "", nil
		}
		return podIPs[0], nil
	case "status.podIPs":
		return strings.Join(podIPs, ","), nil
	}
	return fieldpath.ExtractFieldPathAsString(r.pod, path)
}

// resource is a request or limit of a container; a limit that isn't set is the
// pod's, or else what the node can give.
func (r *resolver) resource(ref *v1.ResourceFieldSelector) (string, error) {
	allocatable := r.node.Allocatable.DeepCopy()
	if resourcehelper.IsPodLevelLimitsSet(r.pod) {
		for name, limit := range r.pod.Spec.Resources.Limits {
			if _, ok := allocatable[name]; ok && resourcehelper.IsSupportedPodLevelResource(name) && !limit.IsZero() {
				allocatable[name] = limit
			}
		}
	}
	if ref.ContainerName == "" {
		c := r.container.DeepCopy()
		resource.MergeContainerResourceLimits(c, allocatable)
		return resource.ExtractContainerResourceValue(ref, c)
	}
	return resource.ExtractResourceValueByContainerNameAndNodeAllocatable(ref, r.pod, ref.ContainerName, allocatable)
}

// SortPodIPs puts the address of the node's own primary family first and keeps
// one address of each family, in canonical form.
func SortPodIPs(node *Node, podIPs []string) []string {
	preferV6 := false
	if len(node.HostIPs) > 0 {
		if a, err := netip.ParseAddr(node.HostIPs[0]); err == nil {
			preferV6 = a.Is6() && !a.Is4In6()
		}
	}
	var v4, v6 string
	for _, ip := range podIPs {
		a, err := netip.ParseAddr(ip)
		switch {
		case err != nil:
		case a.Unmap().Is4() && v4 == "":
			v4 = a.Unmap().String()
		case !a.Unmap().Is4() && v6 == "":
			v6 = a.String()
		}
	}
	ips := []string{v4, v6}
	if preferV6 {
		ips = []string{v6, v4}
	}
	return slices.DeleteFunc(ips, func(s string) bool { return s == "" })
}

// serviceEnv is the environment of the services a pod may see: those of its
// namespace unless it has enableServiceLinks: false, and the API server's.
func serviceEnv(pod *v1.Pod, services []*v1.Service) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	visible := map[string]*v1.Service{}
	for _, s := range services {
		if !v1helper.IsServiceIPSet(s) {
			continue
		}
		switch {
		case s.Namespace == metav1.NamespaceDefault && s.Name == "kubernetes":
			if visible[s.Name] == nil {
				visible[s.Name] = s
			}
		case s.Namespace == pod.Namespace && links:
			visible[s.Name] = s
		}
	}
	env := map[string]string{}
	var sorted []*v1.Service
	for _, name := range slices.Sorted(maps.Keys(visible)) {
		sorted = append(sorted, visible[name])
	}
	for _, e := range envvars.FromServices(sorted) {
		env[e.Name] = e.Value
	}
	return env
}

func isTrue(b *bool) bool { return b != nil && *b }
