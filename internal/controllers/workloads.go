package controllers

import (
	"context"
	"time"

	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/replication"
	"k8s.io/kubernetes/pkg/controller/statefulset"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
)

// workers is how many objects of a kind are worked on at a time. A call to the
// API takes a millisecond here, so few are enough.
const workers = 2

func newDeployment(ctx context.Context, s *set) (loop, error) {
	apps := s.Informers.Apps().V1()
	c, err := deployment.NewDeploymentController(ctx, apps.Deployments(), apps.ReplicaSets(), s.Informers.Core().V1().Pods(), s.client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newReplicaSet(ctx context.Context, s *set) (loop, error) {
	c := replicaset.NewReplicaSetController(ctx, s.Informers.Apps().V1().ReplicaSets(), s.Informers.Core().V1().Pods(), s.client, replicaset.BurstReplicas)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newReplication(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c := replication.NewReplicationManager(ctx, core.Pods(), core.ReplicationControllers(), s.client, replication.BurstReplicas)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newStatefulSet(ctx context.Context, s *set) (loop, error) {
	core, apps := s.Informers.Core().V1(), s.Informers.Apps().V1()
	c := statefulset.NewStatefulSetController(ctx, core.Pods(), apps.StatefulSets(), core.PersistentVolumeClaims(), apps.ControllerRevisions(), s.client)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newDaemonSet(ctx context.Context, s *set) (loop, error) {
	core, apps := s.Informers.Core().V1(), s.Informers.Apps().V1()
	c, err := daemon.NewDaemonSetsController(ctx, apps.DaemonSets(), apps.ControllerRevisions(), core.Pods(), core.Nodes(), s.client,
		flowcontrol.NewBackOff(time.Second, 15*time.Minute))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newJob(ctx context.Context, s *set) (loop, error) {
	// Workloads and PodGroups are for a feature that is off (WorkloadWithJob).
	c, err := job.NewController(ctx, s.client, s.Informers.Core().V1().Pods(), s.Informers.Batch().V1().Jobs(), nil, nil)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newCronJob(ctx context.Context, s *set) (loop, error) {
	batch := s.Informers.Batch().V1()
	c, err := cronjob.NewControllerV2(ctx, batch.Jobs(), batch.CronJobs(), s.client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func newTTLAfterFinished(ctx context.Context, s *set) (loop, error) {
	c := ttlafterfinished.New(ctx, s.Informers.Batch().V1().Jobs(), s.client)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}
