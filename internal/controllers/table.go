package controllers

import (
	"context"

	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

// A Controller is one of kube-controller-manager's.
type Controller struct {
	Name string
	Why  string // it is used, or it isn't

	// build makes its loop; nil where it isn't used. A build that returns no
	// loop has found nothing to do in this configuration.
	build builder
}

// A builder makes a controller and returns its loop.
type builder func(context.Context, *set) (loop, error)

// A loop runs until its context is done.
type loop func(context.Context)

// Used tells whether [Run] runs it.
func (c Controller) Used() bool { return c.build != nil }

// All are the controllers of kube-controller-manager, every one.
var All = []Controller{
	{names.DeploymentController, "rolls ReplicaSets out and back", newDeployment},
	{names.ReplicaSetController, "keeps as many pods as asked for", newReplicaSet},
	{names.ReplicationControllerController, "the ReplicaSet of old manifests", later(replicationControllers, newReplication)},
	{names.StatefulSetController, "pods with names and volumes of their own, in order", later(statefulSets, newStatefulSet)},
	{names.DaemonSetController, "one pod per node, so one", later(daemonSets, newDaemonSet)},
	{names.JobController, "runs pods to completion", newJob},
	{names.CronJobController, "makes Jobs by the clock", later(cronJobs, newCronJob)},
	{names.TTLAfterFinishedController, "removes finished Jobs when their time is up", later(jobsWithTTL, newTTLAfterFinished)},

	{names.EndpointsController, "Endpoints of Services, which old clients read", newEndpoints},
	{names.EndpointSliceController, "EndpointSlices of Services, which the service floor and DNS read", newEndpointSlice},
	{names.EndpointSliceMirroringController, "EndpointSlices of Endpoints written by hand", later(mirroredEndpoints, newEndpointSliceMirroring)},
	{names.ServiceCIDRController, "keeps a range of Services' addresses as long as one is taken from it", newServiceCIDR},

	{names.GarbageCollectorController, "deletes what its owners leave behind, custom resources among them", newGarbageCollector},
	{names.NamespaceController, "empties a deleted namespace", newNamespace},
	{names.PodGarbageCollectorController, "removes pods of a node that is gone (the machine had another name) and the oldest of too many ended ones", newPodGC},
	{names.ResourceQuotaController, "counts what quotas limit", later(quotas, newResourceQuota)},
	{names.DisruptionController, "tells how many pods of a budget may be evicted", newDisruption},
	{names.HorizontalPodAutoscalerController, "scales by metrics.k8s.io, and by custom and external metrics where an adapter serves them", later(autoscalers, newHorizontalPodAutoscaler)},

	{names.ServiceAccountController, "a default ServiceAccount in every namespace", newServiceAccount},
	{names.ServiceAccountTokenController, "fills Secrets of type service-account-token, which charts and CI still ask for", later(tokenSecrets, newServiceAccountToken)},
	{names.RootCACertificatePublisherController, "kube-root-ca.crt in every namespace: pods verify the API by it", newRootCAPublisher},
	{names.KubeAPIServerClusterTrustBundlePublisherController, "the same as a ClusterTrustBundle, where they are served", newTrustBundlePublisher},
	{names.ClusterRoleAggregationController, "puts roles together by label: admin, edit and view of every CustomResourceDefinition", newClusterRoleAggregation},
	{names.CertificateSigningRequestSigningController, "signs approved requests with the node's authority", later(certificateRequests, newCSRSigning)},
	{names.CertificateSigningRequestApprovingController, "approves a node's own client certificate", later(certificateRequests, newCSRApproving)},
	{names.CertificateSigningRequestCleanerController, "removes old requests", later(certificateRequests, newCSRCleaner)},

	{names.PersistentVolumeBinderController, "binds claims to volumes (hostPath, local, nfs), reclaims them, and makes local ones on demand; no cloud plugin is needed", newPersistentVolumeBinder},
	{names.PersistentVolumeClaimProtectionController, "keeps a claim that a pod uses", later(claims, newPVCProtection)},
	{names.PersistentVolumeProtectionController, "keeps a volume that a claim is bound to", later(volumes, newPVProtection)},
	{names.VolumeAttributesClassProtectionController, "takes off the finalizer that admission puts on", later(attributesClasses, newVACProtection)},
	{names.EphemeralVolumeController, "claims out of a pod's generic ephemeral volumes", later(podsWithClaims, newEphemeralVolume)},

	{names.NodeLifecycleController, "turns the node's conditions into taints, so that nothing is scheduled under pressure; it never evicts here, one lost node being all nodes, where it holds back", newNodeLifecycle},
	{names.TaintEvictionController, "kubectl taint … :NoExecute means it on one node too", newTaintEviction},
	{names.ValidatingAdmissionPolicyStatusController, "type-checks policies' expressions", later(policies, newPolicyStatus)},

	{names.LegacyServiceAccountTokenCleanerController, "cleans tokens that Kubernetes before 1.24 made by itself; no store of ours has any", nil},
	{names.TTLController, "tells kubelets how long to cache Secrets by the number of nodes; ours watches", nil},
	{names.BootstrapSignerController, "for nodes that join, which none does; off by default upstream too", nil},
	{names.TokenCleanerController, "for nodes that join, which none does; off by default upstream too", nil},
	{names.NodeIpamController, "gives nodes parts of the pod network; one node has it all", nil},
	{names.PersistentVolumeAttachDetachController, "attaches disks to machines; what is on this one needs no attaching", nil},
	{names.PersistentVolumeExpanderController, "asks FlexVolume plugins to grow a volume; there is none", nil},
	{names.SELinuxWarningController, "off by default upstream; warns of pods on several nodes' mounts", nil},
	{names.ResourceClaimController, "dynamic resource allocation needs drivers that kubelet starts; there is none", nil},
	{names.DeviceTaintEvictionController, "dynamic resource allocation, as above", nil},
	{names.ResourcePoolStatusRequestController, "dynamic resource allocation, as above; alpha", nil},
	{names.PodCertificateRequestCleanerController, "no signer of pod certificates is built into Kubernetes, and the node asks for none", nil},
	{names.PodGroupProtectionController, "PodGroups are off by default upstream (GenericWorkload)", nil},
	{names.StorageVersionGarbageCollectorController, "for several API servers of different versions; alpha", nil},
	{names.StorageVersionMigratorController, "rewrites stored objects in a newer version; it needs a client feature that is off by default (InformerResourceVersion), and the API doesn't serve its requests", nil},
}
