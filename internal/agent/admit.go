package agent

import (
	"context"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	schedulerframework "k8s.io/kubernetes/pkg/scheduler/framework"
)

// admission decides whether a pod bound to this node fits on it, with
// kubelet's own code. Safe for concurrent use.
type admission struct {
	predicates lifecycle.PodAdmitHandler

	mu     sync.Mutex
	others []*v1.Pod // beside the one that is judged
	// infos are what kubelet's code works out of each of them. It would do so for
	// all of them whenever one comes, which is most of the work of a
	// thousand pods' start.
	infos map[types.UID]*schedulerframework.PodInfo
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
	d := &admission{infos: map[types.UID]*schedulerframework.PodInfo{}}
	d.predicates = lifecycle.NewPredicateAdmitHandler(node, lifecycle.NewAdmissionFailureHandlerStub(), d.fill)
	return d
}

// fill puts the other pods on the node, when kubelet asks what its plugins use.
func (d *admission) fill(node *schedulerframework.NodeInfo, _ *lifecycle.PodAdmitAttributes) error {
	gone := len(d.infos) > len(d.others)
	for _, pod := range d.others {
		info := d.infos[pod.UID]
		if info == nil || info.Pod != pod {
			// An error is of affinity terms, which don't matter here.
			info, _ = schedulerframework.NewPodInfo(pod)
			d.infos[pod.UID] = info
			gone = gone || len(d.infos) > len(d.others)
		}
		node.AddPodInfo(info)
	}
	if gone {
		kept := make(map[types.UID]*schedulerframework.PodInfo, len(d.others))
		for _, pod := range d.others {
			kept[pod.UID] = d.infos[pod.UID]
		}
		d.infos = kept
	}
	return nil
}

// judge returns why a pod may not run here, or not with these resources; an
// empty reason lets it in.
func (d *admission) judge(pod *v1.Pod, others []*v1.Pod, op lifecycle.Operation) (reason, message string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.others = others
	result := d.predicates.Admit(context.Background(), &lifecycle.PodAdmitAttributes{Pod: pod, Operation: op})
	d.others = nil
	if result.Admit {
		return "", ""
	}
	return result.Reason, result.Message
}
