package controllers_test

import (
	"fmt"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func (s *space) deployment(name string, replicas int32, change ...func(*v1.PodTemplateSpec)) *appsv1.Deployment {
	s.Helper()
	d, err := s.AppsV1().Deployments(s.ns).Create(s.ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: selector(name), Template: template(app(name), change...)},
	}, metav1.CreateOptions{})
	s.must(err)
	return d
}

func (s *space) image(name, image string) {
	s.Helper()
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image)
	_, err := s.AppsV1().Deployments(s.ns).Patch(s.ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	s.must(err)
}

func (s *space) rolledOut(name, image string, replicas int32) {
	s.Helper()
	s.until(name+" is rolled out with "+image, func() bool {
		d, err := s.AppsV1().Deployments(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		s.must(err)
		st := d.Status
		return st.ObservedGeneration == d.Generation && st.UpdatedReplicas == replicas && st.Replicas == replicas && st.AvailableReplicas == replicas &&
			s.count(func(p *v1.Pod) bool { return running(p) && p.Spec.Containers[0].Image == image }) == int(replicas)
	})
}

func TestDeployment(t *testing.T) {
	s := newSpace(t)
	s.deployment("web", 3)
	s.rolledOut("web", "example.com/i:1", 3)
	s.image("web", "example.com/i:2")
	s.rolledOut("web", "example.com/i:2", 3)

	// Back: what kubectl rollout undo writes is the old template.
	s.image("web", "example.com/i:1")
	s.rolledOut("web", "example.com/i:1", 3)
	sets, err := s.AppsV1().ReplicaSets(s.ns).List(s.ctx, metav1.ListOptions{})
	s.must(err)
	var revisions []string
	for _, rs := range sets.Items {
		revisions = append(revisions, rs.Annotations["deployment.kubernetes.io/revision"])
	}
	slices.Sort(revisions)
	if !slices.Equal(revisions, []string{"2", "3"}) {
		t.Errorf("revisions %v: going back renumbers the old one", revisions)
	}

	// A pod that is lost is made again.
	lost := s.pods()[0]
	s.must(s.CoreV1().Pods(s.ns).Delete(s.ctx, lost.Name, metav1.DeleteOptions{}))
	s.until("the lost pod is replaced", func() bool {
		return s.count(func(p *v1.Pod) bool { return running(p) && p.UID != lost.UID }) == 3
	})
}

func TestReplicationController(t *testing.T) {
	s := newSpace(t)
	pod := template(app("old"))
	_, err := s.CoreV1().ReplicationControllers(s.ns).Create(s.ctx, &v1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: "old"},
		Spec:       v1.ReplicationControllerSpec{Replicas: ptr(int32(2)), Selector: app("old"), Template: &pod},
	}, metav1.CreateOptions{})
	s.must(err)
	s.until("2 pods run", func() bool { return s.count(running) == 2 })
}

func TestStatefulSet(t *testing.T) {
	s := newSpace(t)
	sets := s.AppsV1().StatefulSets(s.ns)
	_, err := sets.Create(s.ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{Replicas: ptr(int32(3)), ServiceName: "db", Selector: selector("db"),
			Template: template(app("db"), func(p *v1.PodTemplateSpec) { p.Annotations[holds] = "" })},
	}, metav1.CreateOptions{})
	s.must(err)
	for i := range 3 {
		name := fmt.Sprintf("db-%d", i)
		s.until(name+" is made", func() bool {
			_, err := s.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
			return err == nil
		})
		if n := len(s.pods()); n != i+1 {
			t.Fatalf("%d pods while %s isn't ready", n, name)
		}
		_, err := s.CoreV1().Pods(s.ns).Patch(s.ctx, name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"test/holds":null}}}`), metav1.PatchOptions{})
		s.must(err)
	}
	s.until("3 pods run", func() bool { return s.count(running) == 3 })

	_, err = sets.Patch(s.ctx, "db", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{})
	s.must(err)
	s.until("the last ones go first", func() bool { return len(s.pods()) == 1 })
	if name := s.pods()[0].Name; name != "db-0" {
		t.Errorf("%s is left", name)
	}
	s.until("the status follows", func() bool {
		set, err := sets.Get(s.ctx, "db", metav1.GetOptions{})
		s.must(err)
		return set.Status.Replicas == 1 && set.Status.ReadyReplicas == 1
	})
}

func TestDaemonSet(t *testing.T) {
	s := newSpace(t)
	_, err := s.AppsV1().DaemonSets(s.ns).Create(s.ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "log"},
		Spec:       appsv1.DaemonSetSpec{Selector: selector("log"), Template: template(app("log"))},
	}, metav1.CreateOptions{})
	s.must(err)
	s.until("one pod runs on the node", func() bool { return s.count(running) == 1 })
	s.until("the status says so", func() bool {
		d, err := s.AppsV1().DaemonSets(s.ns).Get(s.ctx, "log", metav1.GetOptions{})
		s.must(err)
		return d.Status.DesiredNumberScheduled == 1 && d.Status.NumberAvailable == 1
	})
}

func (s *space) job(name string, spec batchv1.JobSpec) {
	s.Helper()
	spec.Template.Spec.RestartPolicy = v1.RestartPolicyNever
	_, err := s.BatchV1().Jobs(s.ns).Create(s.ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	s.must(err)
}

func exit(code string) func(*v1.PodTemplateSpec) {
	return func(p *v1.PodTemplateSpec) { p.Annotations[exits] = code }
}

// ended waits for a job to end and returns how.
func (s *space) ended(name string) (how batchv1.JobCondition, status batchv1.JobStatus) {
	s.Helper()
	s.until(name+" ends", func() bool {
		j, err := s.BatchV1().Jobs(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		s.must(err)
		for _, c := range j.Status.Conditions {
			if c.Status == v1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
				how, status = c, j.Status
				return true
			}
		}
		return false
	})
	return how, status
}

func TestJob(t *testing.T) {
	s := newSpace(t)
	s.job("sum", batchv1.JobSpec{Completions: ptr(int32(3)), Parallelism: ptr(int32(2)), Template: template(nil, exit("0"))})
	if how, st := s.ended("sum"); how.Type != batchv1.JobComplete || st.Succeeded != 3 {
		t.Errorf("sum: %s %s, %d succeeded", how.Type, how.Message, st.Succeeded)
	}
	s.job("indexed", batchv1.JobSpec{Completions: ptr(int32(2)), Parallelism: ptr(int32(2)), CompletionMode: ptr(batchv1.IndexedCompletion), Template: template(nil, exit("0"))})
	if how, st := s.ended("indexed"); how.Type != batchv1.JobComplete || st.CompletedIndexes != "0,1" {
		t.Errorf("indexed: %s %s, completed %s", how.Type, how.Message, st.CompletedIndexes)
	}
	s.job("broken", batchv1.JobSpec{BackoffLimit: ptr(int32(0)), Template: template(nil, exit("1"))})
	if how, st := s.ended("broken"); how.Type != batchv1.JobFailed || how.Reason != batchv1.JobReasonBackoffLimitExceeded || st.Failed != 1 {
		t.Errorf("broken: %s %s, %d failed", how.Type, how.Reason, st.Failed)
	}
	s.job("policy", batchv1.JobSpec{BackoffLimit: ptr(int32(6)), Template: template(nil, exit("42")), PodFailurePolicy: &batchv1.PodFailurePolicy{
		Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}}},
	}})
	if how, st := s.ended("policy"); how.Type != batchv1.JobFailed || how.Reason != batchv1.JobReasonPodFailurePolicy || st.Failed != 1 {
		t.Errorf("policy: %s %s, %d failed", how.Type, how.Reason, st.Failed)
	}
	s.event("sum", "Completed")
}

func TestTTLAfterFinished(t *testing.T) {
	s := newSpace(t)
	s.job("brief", batchv1.JobSpec{TTLSecondsAfterFinished: ptr(int32(0)), Template: template(nil, exit("0"))})
	s.until("the job is removed, and its pod", func() bool {
		_, err := s.BatchV1().Jobs(s.ns).Get(s.ctx, "brief", metav1.GetOptions{})
		return apierrors.IsNotFound(err) && len(s.pods()) == 0
	})
}

// A CronJob whose minute is now starts its Job; the schedule's own arithmetic
// is upstream's. That it is due is told by when it last ran.
func TestCronJob(t *testing.T) {
	s := newSpace(t)
	spec := batchv1.JobSpec{Template: template(nil, exit("0"))}
	spec.Template.Spec.RestartPolicy = v1.RestartPolicyNever
	crons := s.BatchV1().CronJobs(s.ns)
	cron, err := crons.Create(s.ctx, &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "tick"},
		Spec:       batchv1.CronJobSpec{Schedule: "* * * * *", Suspend: ptr(true), JobTemplate: batchv1.JobTemplateSpec{Spec: spec}},
	}, metav1.CreateOptions{})
	s.must(err)
	cron.Status.LastScheduleTime = &metav1.Time{Time: cron.CreationTimestamp.Add(-90e9)}
	_, err = crons.UpdateStatus(s.ctx, cron, metav1.UpdateOptions{})
	s.must(err)
	_, err = crons.Patch(s.ctx, "tick", types.MergePatchType, []byte(`{"spec":{"suspend":false}}`), metav1.PatchOptions{})
	s.must(err)
	var made *batchv1.Job
	s.until("its Job completes", func() bool {
		jobs, err := s.BatchV1().Jobs(s.ns).List(s.ctx, metav1.ListOptions{})
		s.must(err)
		for _, j := range jobs.Items {
			if j.Status.Succeeded == 1 {
				made = &j
			}
		}
		return made != nil
	})
	if by := metav1.GetControllerOf(made); by == nil || by.Name != "tick" {
		t.Errorf("the Job belongs to %v", by)
	}
	s.event("tick", "SuccessfulCreate")
}
