package agent

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	schedulerframework "k8s.io/kubernetes/pkg/scheduler/framework"
)

// admission decides whether a pod bound to this node fits on it, with
// kubelet's own code.
type admission struct {
	agent      *Agent
	predicates lifecycle.PodAdmitHandler
}

func newAdmission(a *Agent) *admission {
	node := func(ctx context.Context, cached bool) (*v1.Node, error) {
		if n := a.cfg.Node.Node(); n != nil && cached {
			return n, nil
		}
		return a.cfg.Node.Fresh(ctx)
	}
	noPlugins := func(*schedulerframework.NodeInfo, *lifecycle.PodAdmitAttributes) error { return nil }
	return &admission{agent: a, predicates: lifecycle.NewPredicateAdmitHandler(node, lifecycle.NewAdmissionFailureHandlerStub(), noPlugins)}
}

// judge returns why a pod may not run here; an empty reason lets it in.
func (d *admission) judge(pod *v1.Pod, others []*v1.Pod) (reason, message string) {
	if message := d.pressure(pod); message != "" {
		return "Evicted", message
	}
	result := d.predicates.Admit(context.Background(), &lifecycle.PodAdmitAttributes{Pod: pod, OtherPods: others, Operation: lifecycle.AddOperation})
	if result.Admit {
		return "", ""
	}
	return result.Reason, result.Message
}

// pressure keeps pods away that would make a shortage worse, as kubelet's
// eviction manager does.
func (d *admission) pressure(pod *v1.Pod) string {
	p := d.agent.cfg.Pressure
	if p == nil || kubetypes.IsCriticalPod(pod) {
		return ""
	}
	var conditions []v1.NodeConditionType
	memory := p.IsUnderMemoryPressure()
	if memory {
		conditions = append(conditions, v1.NodeMemoryPressure)
	}
	if p.IsUnderDiskPressure() {
		conditions = append(conditions, v1.NodeDiskPressure)
	}
	if p.IsUnderPIDPressure() {
		conditions = append(conditions, v1.NodePIDPressure)
	}
	switch {
	case len(conditions) == 0:
		return ""
	case memory && len(conditions) == 1:
		taint := &v1.Taint{Key: v1.TaintNodeMemoryPressure, Effect: v1.TaintEffectNoSchedule}
		if v1qos.GetPodQOS(pod) != v1.PodQOSBestEffort ||
			corev1helpers.TolerationsTolerateTaint(klog.Background(), pod.Spec.Tolerations, taint, utilfeature.DefaultFeatureGate.Enabled(features.TaintTolerationComparisonOperators)) {
			return ""
		}
	}
	return fmt.Sprintf("The node had condition: %v. ", conditions)
}
