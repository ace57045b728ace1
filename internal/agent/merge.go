package agent

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	statusutil "k8s.io/kubernetes/pkg/util/pod"
)

// merge is the status to write: what the engine found, with what others own
// left as the API has it. It modifies neither.
func merge(api, found v1.PodStatus) v1.PodStatus {
	out := found
	out.Conditions = slices.DeleteFunc(slices.Clone(api.Conditions), func(c v1.PodCondition) bool {
		return kubetypes.PodConditionByKubelet(c.Type)
	})
	ends := podutil.IsPodPhaseTerminal(found.Phase) && !podutil.IsPodPhaseTerminal(api.Phase)
	for i := range found.Conditions {
		c := found.Conditions[i]
		switch {
		case kubetypes.PodConditionByKubelet(c.Type):
			out.Conditions = append(out.Conditions, c)
		case kubetypes.PodConditionSharedByKubelet(c.Type) && ends:
			// Why a pod was ended is said when it has.
			out.Conditions = statusutil.ReplaceOrAppendPodCondition(out.Conditions, &c)
		}
	}
	// What has ended is not taken back, whatever a restarted node thinks.
	if podutil.IsPodPhaseTerminal(api.Phase) {
		out.Phase, out.Reason, out.Message = api.Phase, api.Reason, api.Message
	}
	if api.StartTime != nil {
		out.StartTime = api.StartTime
	}
	out.ObservedGeneration = max(api.ObservedGeneration, found.ObservedGeneration)
	out.NominatedNodeName = api.NominatedNodeName
	out.ResourceClaimStatuses = api.ResourceClaimStatuses
	out.ExtendedResourceClaimStatus = api.ExtendedResourceClaimStatus
	out.NodeAllocatableResourceClaimStatuses = api.NodeAllocatableResourceClaimStatuses
	if len(out.VolumeHealth) == 0 {
		out.VolumeHealth = api.VolumeHealth
	}
	return out
}

// anew is what an earlier life of a static pod leaves to the next: its end is
// history. A manifest's pod is started again, after a shutdown of the machine say,
// and its mirror stays the same object.
func anew(api v1.PodStatus) v1.PodStatus {
	api.Phase, api.Reason, api.Message = "", "", ""
	api.Conditions = slices.DeleteFunc(slices.Clone(api.Conditions), func(c v1.PodCondition) bool {
		return kubetypes.PodConditionSharedByKubelet(c.Type)
	})
	return api
}
