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
	late  bool // made when there is something for it to do
}

func used(name, why string, build builder) Controller { return Controller{name, why, build, false} }

func late(name, why string, first find, build builder) Controller {
	return Controller{name, why, later(first, build), true}
}

func unused(name, why string) Controller { return Controller{name, why, nil, false} }

// A builder makes a controller and returns its loop.
type builder func(context.Context, *set) (loop, error)

// A loop runs until its context is done.
type loop func(context.Context)

// All are the controllers of kube-controller-manager, every one.
var All = []Controller{
	used(names.DeploymentController, "rolls ReplicaSets out and back", newDeployment),
	used(names.ReplicaSetController, "keeps as many pods as asked for", newReplicaSet),
	late(names.ReplicationControllerController, "the ReplicaSet of old manifests", replicationControllers, newReplication),
	late(names.StatefulSetController, "pods with names and volumes of their own, in order", statefulSets, newStatefulSet),
	late(names.DaemonSetController, "one pod per node, so one", daemonSets, newDaemonSet),
	used(names.JobController, "runs pods to completion", newJob),
	late(names.CronJobController, "makes Jobs by the clock", cronJobs, newCronJob),
	late(names.TTLAfterFinishedController, "removes finished Jobs when their time is up", jobsWithTTL, newTTLAfterFinished),

	used(names.EndpointsController, "Endpoints of Services, which old clients read", newEndpoints),
	used(names.EndpointSliceController, "EndpointSlices of Services, which the service floor and DNS read", newEndpointSlice),
	late(names.EndpointSliceMirroringController, "EndpointSlices of Endpoints written by hand", mirroredEndpoints, newEndpointSliceMirroring),
	used(names.ServiceCIDRController, "keeps a range of Services' addresses as long as one is taken from it", newServiceCIDR),

	used(names.GarbageCollectorController, "deletes what its owners leave behind, custom resources among them", newGarbageCollector),
	used(names.NamespaceController, "empties a deleted namespace", newNamespace),
	used(names.PodGarbageCollectorController, "removes pods of a node that is gone (the machine had another name) and the oldest of too many ended ones", newPodGC),
	late(names.ResourceQuotaController, "counts what quotas limit", quotas, newResourceQuota),
	used(names.DisruptionController, "tells how many pods of a budget may be evicted", newDisruption),
	late(names.HorizontalPodAutoscalerController, "scales by metrics.k8s.io, and by custom and external metrics where an adapter serves them", autoscalers, newHorizontalPodAutoscaler),

	used(names.ServiceAccountController, "a default ServiceAccount in every namespace", newServiceAccount),
	late(names.ServiceAccountTokenController, "fills Secrets of type service-account-token, which charts and CI still ask for", tokenSecrets, newServiceAccountToken),
	used(names.RootCACertificatePublisherController, "kube-root-ca.crt in every namespace: pods verify the API by it", newRootCAPublisher),
	used(names.KubeAPIServerClusterTrustBundlePublisherController, "the same as a ClusterTrustBundle, where they are served", newTrustBundlePublisher),
	used(names.ClusterRoleAggregationController, "puts roles together by label: admin, edit and view of every CustomResourceDefinition", newClusterRoleAggregation),
	late(names.CertificateSigningRequestSigningController, "signs approved requests with the node's authority", certificateRequests, newCSRSigning),
	late(names.CertificateSigningRequestApprovingController, "approves a node's own client certificate", certificateRequests, newCSRApproving),
	late(names.CertificateSigningRequestCleanerController, "removes old requests", certificateRequests, newCSRCleaner),

	used(names.PersistentVolumeBinderController, "binds claims to volumes (hostPath, local, nfs), reclaims them, and makes local ones on demand; no cloud plugin is needed", newPersistentVolumeBinder),
	late(names.PersistentVolumeClaimProtectionController, "keeps a claim that a pod uses", claims, newPVCProtection),
	late(names.PersistentVolumeProtectionController, "keeps a volume that a claim is bound to", volumes, newPVProtection),
	late(names.VolumeAttributesClassProtectionController, "takes off the finalizer that admission puts on", attributesClasses, newVACProtection),
	late(names.EphemeralVolumeController, "claims out of a pod's generic ephemeral volumes", podsWithClaims, newEphemeralVolume),

	used(names.NodeLifecycleController, "turns the node's conditions into taints, so that nothing is scheduled under pressure; it never evicts here, one lost node being all nodes, where it holds back", newNodeLifecycle),
	used(names.TaintEvictionController, "kubectl taint … :NoExecute means it on one node too", newTaintEviction),
	late(names.ValidatingAdmissionPolicyStatusController, "type-checks policies' expressions", policies, newPolicyStatus),

	unused(names.LegacyServiceAccountTokenCleanerController, "cleans tokens that Kubernetes before 1.24 made by itself; no store of ours has any"),
	unused(names.TTLController, "tells kubelets how long to cache Secrets by the number of nodes; ours watches"),
	unused(names.BootstrapSignerController, "for nodes that join, which none does; off by default upstream too"),
	unused(names.TokenCleanerController, "for nodes that join, which none does; off by default upstream too"),
	unused(names.NodeIpamController, "gives nodes parts of the pod network; one node has it all"),
	unused(names.PersistentVolumeAttachDetachController, "attaches disks to machines; what is on this one needs no attaching"),
	unused(names.PersistentVolumeExpanderController, "asks FlexVolume plugins to grow a volume; there is none"),
	unused(names.SELinuxWarningController, "off by default upstream; warns of pods on several nodes' mounts"),
	unused(names.ResourceClaimController, "dynamic resource allocation needs drivers that kubelet starts; there is none"),
	unused(names.DeviceTaintEvictionController, "dynamic resource allocation, as above"),
	unused(names.ResourcePoolStatusRequestController, "dynamic resource allocation, as above; alpha"),
	unused(names.PodCertificateRequestCleanerController, "no signer of pod certificates is built into Kubernetes, and the node asks for none"),
	unused(names.PodGroupProtectionController, "PodGroups are off by default upstream (GenericWorkload)"),
	unused(names.StorageVersionGarbageCollectorController, "for several API servers of different versions; alpha"),
	unused(names.StorageVersionMigratorController, "rewrites stored objects in a newer version; it needs a client feature that is off by default (InformerResourceVersion), and the API doesn't serve its requests"),
}
