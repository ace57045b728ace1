package controllers_test

import (
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	v1 "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestDisruptionBudget(t *testing.T) {
	s := newSpace(t)
	s.deployment("web", 2)
	s.rolledOut("web", "example.com/i:1", 2)
	least := intstr.FromInt32(2)
	budgets := s.PolicyV1().PodDisruptionBudgets(s.ns)
	pdb, err := budgets.Create(s.ctx, &policy.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: policy.PodDisruptionBudgetSpec{MinAvailable: &least, Selector: selector("web")}}, metav1.CreateOptions{})
	s.must(err)
	s.until("the budget is counted", func() bool {
		pdb, err = budgets.Get(s.ctx, "web", metav1.GetOptions{})
		s.must(err)
		return pdb.Status.CurrentHealthy == 2 && pdb.Status.DesiredHealthy == 2 && pdb.Status.ExpectedPods == 2
	})
	evict := func() error {
		return s.PolicyV1().Evictions(s.ns).Evict(s.ctx, &policy.Eviction{ObjectMeta: metav1.ObjectMeta{Name: s.pods()[0].Name, Namespace: s.ns}})
	}
	if err := evict(); !apierrors.IsTooManyRequests(err) {
		t.Errorf("evicting from a budget of none: %v", err)
	}
	one := intstr.FromInt32(1)
	pdb.Spec.MinAvailable = &one
	_, err = budgets.Update(s.ctx, pdb, metav1.UpdateOptions{})
	s.must(err)
	s.until("one may be evicted", func() bool {
		pdb, err := budgets.Get(s.ctx, "web", metav1.GetOptions{})
		s.must(err)
		return pdb.Status.ObservedGeneration == pdb.Generation && pdb.Status.DisruptionsAllowed == 1
	})
	s.must(evict())
	s.until("it is replaced", func() bool { return s.count(running) == 2 })
}

func TestHorizontalPodAutoscaler(t *testing.T) {
	s := newSpace(t)
	s.deployment("web", 1, func(p *v1.PodTemplateSpec) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m")}
	})
	s.rolledOut("web", "example.com/i:1", 1)
	it.metrics.mu.Lock()
	it.metrics.use[s.ns] = "200m"
	it.metrics.mu.Unlock()
	scalers := s.AutoscalingV2().HorizontalPodAutoscalers(s.ns)
	_, err := scalers.Create(s.ctx, &autoscaling.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: autoscaling.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscaling.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"},
			MinReplicas:    ptr(int32(1)), MaxReplicas: 3,
			Metrics: []autoscaling.MetricSpec{{Type: autoscaling.ResourceMetricSourceType, Resource: &autoscaling.ResourceMetricSource{
				Name: v1.ResourceCPU, Target: autoscaling.MetricTarget{Type: autoscaling.UtilizationMetricType, AverageUtilization: ptr(int32(50))}}}},
		}}, metav1.CreateOptions{})
	s.must(err)
	s.until("four times too busy is scaled to the most allowed", func() bool { return s.count(running) == 3 })
	s.event("web", "SuccessfulRescale")
}

func TestResourceQuota(t *testing.T) {
	s := newSpace(t)
	// What is made while a quota is first counted is counted in five minutes.
	s.until("the namespace has what every one has", func() bool {
		_, err := it.shared.Core().V1().ConfigMaps().Lister().ConfigMaps(s.ns).Get("kube-root-ca.crt")
		return err == nil
	})
	quotas := s.CoreV1().ResourceQuotas(s.ns)
	_, err := quotas.Create(s.ctx, &v1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"},
		Spec: v1.ResourceQuotaSpec{Hard: v1.ResourceList{v1.ResourcePods: resource.MustParse("2"), "count/configmaps": resource.MustParse("5")}}}, metav1.CreateOptions{})
	s.must(err)
	used := func(name v1.ResourceName) string {
		q, err := quotas.Get(s.ctx, "q", metav1.GetOptions{})
		s.must(err)
		n := q.Status.Used[name]
		return n.String()
	}
	s.until("what is used is counted", func() bool { return used(v1.ResourcePods) == "0" && used("count/configmaps") == "1" })
	s.deployment("web", 3)
	s.until("as many pods run as are allowed", func() bool { return s.count(running) == 2 && used(v1.ResourcePods) == "2" })
	s.event("web", "FailedCreate")
	s.must(s.AppsV1().Deployments(s.ns).Delete(s.ctx, "web", metav1.DeleteOptions{}))
	s.until("what is gone is given back", func() bool { return used(v1.ResourcePods) == "0" })
}

func TestPolicyTypeCheck(t *testing.T) {
	s := newSpace(t)
	policies := s.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	name := s.ns + ".example.com"
	_, err := policies.Create(s.ctx, &admission.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admission.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admission.MatchResources{ResourceRules: []admission.NamedRuleWithOperations{{RuleWithOperations: admission.RuleWithOperations{
				Operations: []admission.OperationType{admission.Create},
				Rule:       admission.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}}}}}},
			Validations: []admission.Validation{{Expression: "object.spec.replicas < 'five'"}},
		}}, metav1.CreateOptions{})
	s.must(err)
	defer func() { s.must(policies.Delete(s.ctx, name, metav1.DeleteOptions{})) }()
	s.until("the policy's type error is told", func() bool {
		p, err := policies.Get(s.ctx, name, metav1.GetOptions{})
		s.must(err)
		return p.Status.ObservedGeneration == p.Generation && p.Status.TypeChecking != nil && len(p.Status.TypeChecking.ExpressionWarnings) == 1
	})
}
