package play

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"unipod.dev/unipod/internal/manifest"
)

// A stage is objects that can be made at the same time. They are made in this
// order, and removed in the reverse: what runs is made when all it may need is
// there, and an operator outlives what only it can clean up.
type stage int

const (
	definitions stage = iota // of kinds
	namespaces
	rights   // accounts, roles, classes, quotas
	data     // ConfigMaps, Secrets, claims
	network  // Services and rules
	runners  // what makes pods
	customs  // objects of other kinds
	watchers // what has a say in everybody's requests
)

// stages are those of Kubernetes' own kinds.
var stages = map[schema.GroupKind]stage{
	{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}: definitions,
	{Kind: "Namespace"}:                                     namespaces,
	{Kind: "ServiceAccount"}:                                rights,
	{Kind: "ResourceQuota"}:                                 rights,
	{Kind: "LimitRange"}:                                    rights,
	{Group: "scheduling.k8s.io", Kind: "PriorityClass"}:     rights,
	{Group: "storage.k8s.io", Kind: "StorageClass"}:         rights,
	{Group: "node.k8s.io", Kind: "RuntimeClass"}:            rights,
	{Kind: "ConfigMap"}:                                     data,
	{Kind: "Secret"}:                                        data,
	{Kind: "PersistentVolume"}:                              data,
	{Kind: "PersistentVolumeClaim"}:                         data,
	{Kind: "Service"}:                                       network,
	{Kind: "Endpoints"}:                                     network,
	{Group: "policy", Kind: "PodDisruptionBudget"}:          network,
	{Group: "autoscaling", Kind: "HorizontalPodAutoscaler"}: runners,
	{Kind: "Pod"}:                                           runners,
	{Kind: "ReplicationController"}:                         runners,
	{Group: "apps", Kind: "Deployment"}:                     runners,
	{Group: "apps", Kind: "ReplicaSet"}:                     runners,
	{Group: "apps", Kind: "StatefulSet"}:                    runners,
	{Group: "apps", Kind: "DaemonSet"}:                      runners,
	{Group: "batch", Kind: "Job"}:                           runners,
	{Group: "batch", Kind: "CronJob"}:                       runners,
	{Group: "apiregistration.k8s.io", Kind: "APIService"}:   watchers,
}

// stageOf is the stage of a kind.
func stageOf(gk schema.GroupKind) stage {
	if s, ok := stages[gk]; ok {
		return s
	}
	switch gk.Group {
	case "rbac.authorization.k8s.io":
		return rights
	case "networking.k8s.io", "discovery.k8s.io":
		return network
	case "admissionregistration.k8s.io":
		return watchers
	}
	return customs
}

// makesPods tells whether pods may come of an object of the kind.
func makesPods(gk schema.GroupKind) bool {
	s := stageOf(gk)
	return s == runners && gk.Kind != "HorizontalPodAutoscaler" || s == customs
}

// Plays tells whether pods may come of any of the objects.
func Plays(objects []*manifest.Object) bool {
	return slices.ContainsFunc(objects, func(o *manifest.Object) bool { return makesPods(o.GroupVersionKind().GroupKind()) })
}

// inOrder sorts objects by stages, within a stage as they came.
func inOrder(objects []*planned) {
	slices.SortStableFunc(objects, func(a, b *planned) int { return cmp.Compare(a.stage, b.stage) })
}

// A Runner is an object of the play that pods come of.
type Runner struct {
	Key string // as [Event.Of] names it
	// Pod and Job say how it ends; another doesn't.
	Pod, Job bool
}
