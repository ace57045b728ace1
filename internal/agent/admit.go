package agent

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	schedulerframework "k8s.io/kubernetes/pkg/scheduler/framework"
)

// admission decides whether a pod bound to this node fits on it, with
// kubelet's own code.
type admission struct {
	predicates lifecycle.PodAdmitHandler
}

func newAdmission(a *Agent) *admission {
	// The scheduler looks at the same informer: a pod that it binds because a
	// taint is gone isn't refused for it.
	nodes := a.cfg.Informers.Core().V1().Nodes().Lister()
	node := func(ctx context.Context, cached bool) (*v1.Node, error) {
		if cached {
			if n, err := nodes.Get(a.cfg.NodeName); err == nil {
				return n, nil
			}
		}
		return a.cfg.Node.Fresh(ctx)
	}
	noPlugins := func(*schedulerframework.NodeInfo, *lifecycle.PodAdmitAttributes) error { return nil }
	return &admission{predicates: lifecycle.NewPredicateAdmitHandler(node, lifecycle.NewAdmissionFailureHandlerStub(), noPlugins)}
}

// judge returns why a pod may not run here, or not with these resources; an
// empty reason lets it in.
func (d *admission) judge(pod *v1.Pod, others []*v1.Pod, op lifecycle.Operation) (reason, message string) {
	result := d.predicates.Admit(context.Background(), &lifecycle.PodAdmitAttributes{Pod: pod, OtherPods: others, Operation: op})
	if result.Admit {
		return "", ""
	}
	return result.Reason, result.Message
}
