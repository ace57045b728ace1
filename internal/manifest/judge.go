package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/kubernetes/pkg/apis/scheduling"
)

// checkFields gives every field that the object sets its verdict.
func (r *reader) checkFields(it *item, verdicts map[string]verdict) {
	var tree any
	if err := json.Unmarshal(it.json, &tree); err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	r.checkTree(it, verdicts, tree, "", "")
}

// checkTree walks a value; rule is its path in the table and path its own.
func (r *reader) checkTree(it *item, verdicts map[string]verdict, value any, rule, path string) {
	if empty(value) || it.unknown[path] {
		return
	}
	if v, ok := verdicts[rule]; ok {
		switch v.kind {
		case refused:
			r.fail(it, path, errdefs.ErrNotImplemented, "not supported: %s", v.reason)
		case idle:
			r.warn(it, path, "it has no effect: %s", v.reason)
		}
		return
	}
	switch value := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			r.checkTree(it, verdicts, value[key], join(rule, key), join(path, key))
		}
	case []any:
		for i, element := range value {
			r.checkTree(it, verdicts, element, rule+"[]", fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		r.fail(it, path, errdefs.ErrNotImplemented, "not supported: %s", notYet)
	}
}

func empty(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case map[string]any:
		return len(value) == 0
	case []any:
		return len(value) == 0
	}
	return false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// judge applies the rules of the fields whose verdict depends on their value.
// The pod is as the manifest has it, before defaulting.
func (r *reader) judge(it *item, pod *v1.Pod) {
	spec := &pod.Spec
	if spec.OS != nil && spec.OS.Name != v1.Linux {
		r.fail(it, "spec.os.name", errdefs.ErrNotImplemented, "not supported: only linux runs here")
	}
	if spec.NodeName != "" && spec.NodeName != r.NodeName {
		r.fail(it, "spec.nodeName", errdefs.ErrInvalidArgument, "the pod is bound to node %q, and this is node %q", spec.NodeName, r.NodeName)
	}
	r.judgePriority(it, spec)
	r.judgeServiceAccount(it, spec)
	r.judgeNode(it, pod)
	for list, containers := range map[string][]v1.Container{"spec.initContainers": spec.InitContainers, "spec.containers": spec.Containers} {
		for i := range containers {
			r.judgeResources(it, fmt.Sprintf("%s[%d].resources", list, i), &containers[i].Resources)
		}
	}
}

// judgePriority does what the Priority admission plugin does for the classes
// that every cluster has.
func (r *reader) judgePriority(it *item, spec *v1.PodSpec) {
	builtin := map[string]int32{
		scheduling.SystemClusterCritical: scheduling.SystemCriticalPriority,
		scheduling.SystemNodeCritical:    scheduling.SystemCriticalPriority + 1000,
	}
	if spec.PriorityClassName == "" {
		return
	}
	priority, ok := builtin[spec.PriorityClassName]
	switch {
	case !ok:
		r.fail(it, "spec.priorityClassName", errdefs.ErrNotImplemented, "no PriorityClass with name %s was found: without an API server there are only %s and %s; set spec.priority instead",
			spec.PriorityClassName, scheduling.SystemClusterCritical, scheduling.SystemNodeCritical)
	case spec.Priority != nil && *spec.Priority != priority:
		r.fail(it, "spec.priority", errdefs.ErrInvalidArgument, "the integer value of priority (%d) must not be provided in pod spec; priorityClassName %s gives %d",
			*spec.Priority, spec.PriorityClassName, priority)
	default:
		spec.Priority = &priority
	}
}

// judgeServiceAccount accepts a service account where it is but a name. kubelet
// refuses any in a static pod; most manifests have one without needing it, so
// here only a pod that would miss its token is refused.
func (r *reader) judgeServiceAccount(it *item, spec *v1.PodSpec) {
	const nobody = "not supported: there is nobody to issue a token for it: " + needsAPI
	automount := spec.AutomountServiceAccountToken
	if automount != nil && *automount {
		r.fail(it, "spec.automountServiceAccountToken", errdefs.ErrNotImplemented, nobody)
		return
	}
	path, name := "spec.serviceAccountName", spec.ServiceAccountName
	if name == "" {
		path, name = "spec.serviceAccount", spec.DeprecatedServiceAccount
	}
	if name != "" && name != "default" && automount == nil {
		r.fail(it, path, errdefs.ErrNotImplemented, nobody+"; if the pod can do without, set automountServiceAccountToken: false")
	}
}

// judgeNode refuses pods that a scheduler would not put on this node.
func (r *reader) judgeNode(it *item, pod *v1.Pod) {
	for _, key := range slices.Sorted(maps.Keys(pod.Spec.NodeSelector)) {
		want := pod.Spec.NodeSelector[key]
		if got, ok := r.NodeLabels[key]; !ok {
			r.fail(it, field.NewPath("spec", "nodeSelector").Key(key).String(), errdefs.ErrInvalidArgument, "the node doesn't have this label, so the pod could never run")
		} else if got != want {
			r.fail(it, field.NewPath("spec", "nodeSelector").Key(key).String(), errdefs.ErrInvalidArgument, "the node's label is %q, so the pod could never run", got)
		}
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return
	}
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.NodeName, Labels: r.NodeLabels}}
	affinity := &v1.Pod{Spec: v1.PodSpec{Affinity: &v1.Affinity{NodeAffinity: a.NodeAffinity}}}
	// An expression that can't be parsed is reported by validation.
	if match, err := nodeaffinity.GetRequiredNodeAffinity(affinity).Match(node); err == nil && !match {
		r.fail(it, "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution", errdefs.ErrInvalidArgument, "no term selects this node, so the pod could never run")
	}
}

func (r *reader) judgeResources(it *item, path string, res *v1.ResourceRequirements) {
	for kind, list := range map[string]v1.ResourceList{"limits": res.Limits, "requests": res.Requests} {
		for name := range list {
			if v1helper.IsExtendedResourceName(name) {
				r.fail(it, path+"."+kind+"["+string(name)+"]", errdefs.ErrNotImplemented, "not supported: the node has no such resource, nor device plugins that could offer it")
			}
		}
	}
}

// dropDisabled removes the fields of features that are off in this version of
// Kubernetes. The API server does so without a word; here each is an error.
func (r *reader) dropDisabled(it *item, pod *core.Pod) {
	before := podTree(pod)
	podutil.DropDisabledPodFields(pod, nil)
	r.compare(it, before, podTree(pod), "")
}

func podTree(pod *core.Pod) any {
	out := &v1.Pod{}
	if err := corev1.Convert_core_Pod_To_v1_Pod(pod, out, nil); err != nil {
		return nil // the final conversion reports it
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil
	}
	var tree any
	_ = json.Unmarshal(text, &tree) // just encoded
	return tree
}

// compare reports what is in before and not in after.
func (r *reader) compare(it *item, before, after any, path string) {
	if reflect.DeepEqual(before, after) {
		return
	}
	switch before := before.(type) {
	case map[string]any:
		if after, ok := after.(map[string]any); ok {
			for _, key := range slices.Sorted(maps.Keys(before)) {
				r.compare(it, before[key], after[key], join(path, key))
			}
			return
		}
	case []any:
		if after, ok := after.([]any); ok && len(after) == len(before) {
			for i := range before {
				r.compare(it, before[i], after[i], fmt.Sprintf("%s[%d]", path, i))
			}
			return
		}
	}
	r.fail(it, path, errdefs.ErrNotImplemented, "not supported: the field's feature is off in this version of Kubernetes")
}
