package objects

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/storage/ephemeral"
	volumehelper "k8s.io/component-helpers/storage/volume"
)

// Claim is the persistent volume behind a volume of a pod that names a claim,
// or has one of its own. The errors are kubelet's words; all of them are worth
// trying again. It implements volume.Config's Claim. Both objects are asked
// for anew: a pod asks once, and must not see a binding that is no more.
func (s *Source) Claim(ctx context.Context, pod *v1.Pod, v *v1.Volume) (*v1.PersistentVolume, error) {
	name := ""
	if v.PersistentVolumeClaim != nil {
		name = v.PersistentVolumeClaim.ClaimName
	} else {
		name = ephemeral.VolumeClaimName(pod, v)
	}
	claim, err := s.cfg.Client.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("error processing PVC %s/%s: failed to fetch PVC from API server: %w", pod.Namespace, name, err)
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
			return nil, err
		}
	}
	// A claim in its end that no pod uses yet is not taken up any more.
	if claim.DeletionTimestamp != nil && pod.Status.Phase == v1.PodPending {
		return nil, fmt.Errorf("error processing PVC %s/%s: PVC is being deleted", pod.Namespace, name)
	}
	if claim.Status.Phase != v1.ClaimBound || claim.Spec.VolumeName == "" {
		return nil, fmt.Errorf("error processing PVC %s/%s: PVC is not bound", pod.Namespace, name)
	}
	pv, err := s.cfg.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("error processing PVC %s/%s: failed to fetch PV %s from API server: %w", pod.Namespace, name, claim.Spec.VolumeName, err)
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return nil, fmt.Errorf("error processing PVC %s/%s: PV %s is bound to another claim", pod.Namespace, name, pv.Name)
	}
	return pv, s.onThisNode(ctx, pv)
}

// onThisNode checks a volume's node affinity.
func (s *Source) onThisNode(ctx context.Context, pv *v1.PersistentVolume) error {
	if pv.Spec.NodeAffinity == nil {
		return nil
	}
	node, err := s.cfg.Client.CoreV1().Nodes().Get(ctx, s.cfg.Node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("checking the node affinity of PV %s: %w", pv.Name, err)
	}
	if err := volumehelper.CheckNodeAffinity(pv, labels.Set(node.Labels)); err != nil {
		return fmt.Errorf("PV %s can't be used on node %s: %w", pv.Name, s.cfg.Node, err)
	}
	return nil
}
