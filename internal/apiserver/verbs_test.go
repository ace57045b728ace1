package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// kinds are one object of each kind that can be created by itself.
const kinds = `
{apiVersion: v1, kind: ConfigMap, data: {a: b}}
---
{apiVersion: v1, kind: Secret, stringData: {a: b}}
---
{apiVersion: v1, kind: Pod, spec: {containers: [{name: c, image: i}]}}
---
{apiVersion: v1, kind: Service, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Endpoints, subsets: []}
---
{apiVersion: v1, kind: ServiceAccount}
---
{apiVersion: v1, kind: PodTemplate, template: {spec: {containers: [{name: c, image: i}]}}}
---
{apiVersion: v1, kind: ReplicationController, spec: {selector: {a: b}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}
---
{apiVersion: v1, kind: LimitRange, spec: {limits: [{type: Pod, max: {cpu: "100"}}]}}
---
{apiVersion: v1, kind: ResourceQuota, spec: {hard: {services: "50"}}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}
---
{apiVersion: v1, kind: PersistentVolume, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /x}}}
---
{apiVersion: v1, kind: Node}
---
{apiVersion: v1, kind: Namespace}
---
{apiVersion: apps/v1, kind: Deployment, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}
---
{apiVersion: apps/v1, kind: ReplicaSet, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}
---
{apiVersion: apps/v1, kind: StatefulSet, spec: {serviceName: s, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}
---
{apiVersion: apps/v1, kind: DaemonSet, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}
---
{apiVersion: apps/v1, kind: ControllerRevision, revision: 1, data: {}}
---
{apiVersion: batch/v1, kind: Job, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, spec: {schedule: "* * * * *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}
---
{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, spec: {maxReplicas: 2, scaleTargetRef: {kind: Deployment, name: x, apiVersion: apps/v1}}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, spec: {defaultBackend: {service: {name: s, port: {number: 80}}}}}
---
{apiVersion: networking.k8s.io/v1, kind: IngressClass, spec: {controller: example.test/c}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, spec: {podSelector: {}}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, endpoints: []}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, spec: {holderIdentity: me}}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, provisioner: example.test/p}
---
{apiVersion: storage.k8s.io/v1, kind: CSIDriver, spec: {}}
---
{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, spec: {attacher: a, nodeName: here, source: {persistentVolumeName: p}}}
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, value: 7}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, spec: {maxUnavailable: 1, selector: {matchLabels: {none: such}}}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, rules: []}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, roleRef: {kind: Role, name: r, apiGroup: rbac.authorization.k8s.io}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, rules: []}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, roleRef: {kind: ClusterRole, name: r, apiGroup: rbac.authorization.k8s.io}}
---
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, handler: h}
---
{apiVersion: events.k8s.io/v1, kind: Event, eventTime: "2026-01-01T00:00:00.000000Z", reportingController: example.test/c, reportingInstance: i, action: A, reason: R, type: Normal, regarding: {kind: Pod, name: x, namespace: NS}}
---
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, webhooks: []}
---
{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, webhooks: []}
---
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, spec: {failurePolicy: Ignore, matchConstraints: {resourceRules: [{apiGroups: [example.test], apiVersions: [v1], operations: [CREATE], resources: [none]}]}, validations: [{expression: "true"}]}}
---
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: things.verbs.example.test}, spec: {group: verbs.example.test, scope: Namespaced, names: {plural: things, kind: Thing}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}
`

// TestKinds: every kind of every group can be created, read, listed, watched,
// updated, patched in three ways, applied and deleted.
func TestKinds(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	d := dynamicClient(t, w.Loopback())
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(clients(t, w.admin(t)).Discovery()))
	for _, text := range strings.Split(kinds, "---\n") {
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "NS}", ns+"}")), &obj.Object); err != nil {
			t.Fatal(err)
		}
		t.Run(obj.GetKind(), func(t *testing.T) {
			gvk := obj.GroupVersionKind()
			m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
			if err != nil {
				t.Fatal(err)
			}
			var client dynamic.ResourceInterface = d.Resource(m.Resource)
			if m.Scope.Name() == meta.RESTScopeNameNamespace {
				client = d.Resource(m.Resource).Namespace(ns)
				obj.SetNamespace(ns)
			}
			if obj.GetName() == "" {
				obj.SetName("verbs")
			}
			obj.SetLabels(map[string]string{"verbs": "yes"})
			everyVerb(t, client, obj)
		})
	}
}

func everyVerb(t *testing.T, client dynamic.ResourceInterface, obj *unstructured.Unstructured) {
	ctx, name := t.Context(), obj.GetName()
	made, err := client.Create(ctx, obj, metav1.CreateOptions{FieldValidation: "Strict"})
	if err != nil {
		t.Fatal("create:", err)
	}
	events, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: made.GetResourceVersion(), FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal("watch:", err)
	}
	defer events.Stop()
	if _, err := client.Create(ctx, obj, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create twice: %v", err)
	}
	if got, err := client.Get(ctx, name, metav1.GetOptions{}); err != nil || got.GetUID() != made.GetUID() {
		t.Errorf("get: %v", err)
	}
	if list, err := client.List(ctx, metav1.ListOptions{LabelSelector: "verbs=yes"}); err != nil || len(list.Items) != 1 {
		t.Errorf("list: %v", err)
	}
	// Controllers write too: a definition's conditions.
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		now, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		now.SetAnnotations(map[string]string{"a": "1"})
		_, err = client.Update(ctx, now, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal("update:", err)
	}
	made.SetAnnotations(map[string]string{"a": "2"})
	if _, err := client.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of what has changed: %v", err)
	}
	if _, err := client.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"b":"2"}}}`), metav1.PatchOptions{}); err != nil {
		t.Error("merge patch:", err)
	}
	if _, err := client.Patch(ctx, name, types.JSONPatchType, []byte(`[{"op":"add","path":"/metadata/annotations/c","value":"3"}]`), metav1.PatchOptions{}); err != nil {
		t.Error("json patch:", err)
	}
	if _, err := client.Patch(ctx, name, types.StrategicMergePatchType, []byte(`{"metadata":{"annotations":{"d":"4"}}}`), metav1.PatchOptions{}); err != nil {
		t.Error("strategic patch:", err)
	}
	apply := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"annotations":{"e":"5"}}}`, obj.GetAPIVersion(), obj.GetKind(), name)
	applied, err := client.Patch(ctx, name, types.ApplyPatchType, []byte(apply), metav1.PatchOptions{FieldManager: "me"})
	if err != nil {
		t.Fatal("apply:", err)
	}
	if a := applied.GetAnnotations(); len(a) < 5 || a["a"] != "1" || a["e"] != "5" {
		t.Errorf("annotations %v", a)
	}
	owner := false
	for _, f := range applied.GetManagedFields() {
		owner = owner || f.Manager == "me" && f.Operation == metav1.ManagedFieldsOperationApply
	}
	if !owner {
		t.Errorf("managed fields %v", applied.GetManagedFields())
	}
	err = client.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: &metav1.Preconditions{UID: ptr.To(types.UID("other"))}})
	if !apierrors.IsConflict(err) {
		t.Errorf("delete of another: %v", err)
	}
	if err := client.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Error("delete:", err)
	}
	modified := 0
	for e := range events.ResultChan() {
		if e.Type == watch.Modified {
			modified++
		}
		o, ok := e.Object.(*unstructured.Unstructured)
		// A namespace and a volume in use stay until their controllers let go.
		if e.Type == watch.Deleted || e.Type == watch.Modified && ok && o.GetDeletionTimestamp() != nil {
			break
		}
	}
	if modified < 4 {
		t.Errorf("%d changes seen by a watch", modified)
	}
}

func TestLists(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx := t.Context()
	maps := clients(t, w.admin(t)).CoreV1().ConfigMaps(ns)
	for i := range 7 {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", i), Labels: map[string]string{"odd": fmt.Sprint(i % 2)}}}
		if _, err := maps.Create(ctx, cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("pages", func(t *testing.T) {
		var names []string
		o := metav1.ListOptions{Limit: 3}
		for {
			page, err := maps.List(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range page.Items {
				names = append(names, m.Name)
			}
			if o.Continue = page.Continue; o.Continue == "" {
				break
			}
			// What is written meanwhile is not in the pages.
			if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", len(names))}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(names, " "); got != "m0 m1 m2 m3 m4 m5 m6" {
			t.Errorf("pages hold %s", got)
		}
	})
	t.Run("selectors", func(t *testing.T) {
		if l, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "odd in (1)"}); err != nil || len(l.Items) != 3 {
			t.Errorf("%v, %v", l, err)
		}
		if l, err := maps.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=m4"}); err != nil || len(l.Items) != 1 {
			t.Errorf("%v, %v", l, err)
		}
		_, err := maps.List(ctx, metav1.ListOptions{FieldSelector: "spec.such=1"})
		mustContain(t, err, "spec.such")
	})
	t.Run("watch list", func(t *testing.T) {
		yes := true
		events, err := maps.Watch(ctx, metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, LabelSelector: "odd=0"})
		if err != nil {
			t.Fatal(err)
		}
		defer events.Stop()
		added := 0
		for e := range events.ResultChan() {
			if e.Type == watch.Added {
				added++
				continue
			}
			if e.Type != watch.Bookmark || e.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] != "true" {
				t.Errorf("%v", e)
			}
			break
		}
		if added != 4 {
			t.Errorf("%d initial events", added)
		}
	})
	t.Run("collection", func(t *testing.T) {
		if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "odd"}); err != nil {
			t.Fatal(err)
		}
		if l, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "odd"}); err != nil || len(l.Items) != 0 {
			t.Errorf("%d left, %v", len(l.Items), err)
		}
	})
}

func TestSubresources(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, k := t.Context(), clients(t, w.admin(t))
	pods := k.CoreV1().Pods(ns)
	create := func(p *corev1.Pod) *corev1.Pod {
		t.Helper()
		made, err := pods.Create(ctx, p, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	t.Run("scale", func(t *testing.T) {
		dep := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: pod("x").Spec},
		}}
		if _, err := k.AppsV1().Deployments(ns).Create(ctx, dep, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		s, err := k.AppsV1().Deployments(ns).UpdateScale(ctx, "d", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: ns}, Spec: autoscalingv1.ScaleSpec{Replicas: 5}}, metav1.UpdateOptions{})
		if err != nil || s.Spec.Replicas != 5 {
			t.Errorf("%v, %v", s, err)
		}
	})
	t.Run("binding and status", func(t *testing.T) {
		create(pod("bound"))
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "bound"}, Target: corev1.ObjectReference{Kind: "Node", Name: "here"}}
		if err := pods.Bind(ctx, b, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := pods.Bind(ctx, b, metav1.CreateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("bound twice: %v", err)
		}
		_, err := pods.Patch(ctx, "bound", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			t.Fatal(err)
		}
		p, err := pods.Get(ctx, "bound", metav1.GetOptions{})
		if err != nil || p.Spec.NodeName != "here" || p.Status.Phase != corev1.PodRunning {
			t.Errorf("%+v, %v", p, err)
		}
	})
	t.Run("ephemeral containers", func(t *testing.T) {
		p := create(pod("debugged"))
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d", Image: "i", TerminationMessagePolicy: "File", ImagePullPolicy: "Always"}}}
		if p, err := pods.UpdateEphemeralContainers(ctx, p.Name, p, metav1.UpdateOptions{}); err != nil || len(p.Spec.EphemeralContainers) != 1 {
			t.Errorf("%v", err)
		}
	})
	t.Run("resize", func(t *testing.T) {
		p := pod("resized")
		p.Spec.Containers[0].Resources.Requests = usage("100m", "10Mi")
		create(p)
		got, err := pods.Patch(ctx, "resized", types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"200m"}}}]}}`), metav1.PatchOptions{}, "resize")
		if err != nil || got.Spec.Containers[0].Resources.Requests.Cpu().MilliValue() != 200 {
			t.Errorf("%v", err)
		}
	})
	t.Run("eviction", func(t *testing.T) {
		p := pod("guarded")
		p.Spec.NodeName = "here"
		create(p)
		budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: ptr.To(intstr.FromInt32(0)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}}}}
		if _, err := k.PolicyV1().PodDisruptionBudgets(ns).Create(ctx, budget, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Patch(ctx, "guarded", types.MergePatchType, []byte(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "guarded", Namespace: ns}}
		// The answer says when to try again, and the client would.
		err := k.CoreV1().RESTClient().Post().MaxRetries(0).Namespace(ns).Resource("pods").Name("guarded").SubResource("eviction").Body(eviction).Do(ctx).Error()
		if !apierrors.IsTooManyRequests(err) {
			t.Errorf("evicted against its budget: %v", err)
		}
		if err := k.PolicyV1().PodDisruptionBudgets(ns).Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := pods.EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "guarded", Namespace: ns}}); err != nil {
			t.Error(err)
		}
	})
	t.Run("grace", func(t *testing.T) {
		p := pod("slow")
		p.Spec.NodeName = "here"
		create(p)
		if err := pods.Delete(ctx, "slow", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := pods.Get(ctx, "slow", metav1.GetOptions{})
		if err != nil || got.DeletionTimestamp == nil || *got.DeletionGracePeriodSeconds != 30 {
			t.Errorf("%+v, %v", got.ObjectMeta, err)
		}
	})
}

func TestWrites(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, k := t.Context(), clients(t, w.admin(t))
	maps := k.CoreV1().ConfigMaps(ns)
	t.Run("strict fields", func(t *testing.T) {
		body := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"odd"},"dota":{}}`)
		err := k.CoreV1().RESTClient().Post().Namespace(ns).Resource("configmaps").Param("fieldValidation", "Strict").SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
		mustContain(t, err, "unknown field", "dota")
		r := k.CoreV1().RESTClient().Post().Namespace(ns).Resource("configmaps").Param("fieldValidation", "Warn").SetHeader("Content-Type", "application/json").Body(body).Do(ctx)
		if r.Error() != nil || len(r.Warnings()) != 1 || !strings.Contains(r.Warnings()[0].Text, "dota") {
			t.Errorf("%v, %v", r.Warnings(), r.Error())
		}
	})
	t.Run("dry run", func(t *testing.T) {
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "dry"}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Fatal(err)
		}
		if _, err := maps.Get(ctx, "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%v", err)
		}
	})
	t.Run("apply conflicts", func(t *testing.T) {
		set := func(manager, value string, force bool) error {
			_, err := maps.Apply(ctx, corev1apply.ConfigMap("owned", ns).WithData(map[string]string{"k": value}), metav1.ApplyOptions{FieldManager: manager, Force: force})
			return err
		}
		if err := set("one", "1", false); err != nil {
			t.Fatal(err)
		}
		err := set("two", "2", false)
		if !apierrors.IsConflict(err) {
			t.Fatalf("%v", err)
		}
		mustContain(t, err, "one", ".data.k")
		if err := set("two", "2", true); err != nil {
			t.Error(err)
		}
	})
	t.Run("size", func(t *testing.T) {
		big := func(n int) *corev1.ConfigMap {
			return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("big", n)}, BinaryData: map[string][]byte{"b": make([]byte, n)}}
		}
		if _, err := maps.Create(ctx, big(1<<20-100), metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := maps.Create(ctx, big(1<<20+1), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("%v", err)
		}
		if _, err := maps.Create(ctx, big(4<<20), metav1.CreateOptions{}); !apierrors.IsRequestEntityTooLargeError(err) {
			t.Errorf("%v", err)
		}
	})
	t.Run("invalid", func(t *testing.T) {
		p := pod("Upper")
		_, err := k.CoreV1().Pods(ns).Create(ctx, p, metav1.CreateOptions{})
		mustContain(t, err, "metadata.name", "lowercase")
	})
}

func TestFormats(t *testing.T) {
	w := start(t)
	admin := w.admin(t)
	table := http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}}
	for path, column := range map[string]string{
		"/api/v1/namespaces": "Status", "/apis/apps/v1/deployments": "Up-to-date", "/apis/metrics.k8s.io/v1beta1/pods": "CPU",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles": "Created At", "/api/v1/namespaces/default/services": "Cluster-IP",
	} {
		_, body := raw(t, admin, path, table)
		var got metav1.Table
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Kind != "Table" {
			t.Fatalf("%s: %v %s", path, err, body)
		}
		found := false
		for _, c := range got.ColumnDefinitions {
			found = found || c.Name == column
		}
		if !found {
			t.Errorf("%s: columns %v lack %s", path, got.ColumnDefinitions, column)
		}
	}
	resp, body := raw(t, admin, "/api/v1/namespaces", http.Header{"Accept": {"application/vnd.kubernetes.protobuf"}})
	if resp.Header.Get("Content-Type") != "application/vnd.kubernetes.protobuf" || !strings.HasPrefix(body, "k8s\x00") {
		t.Errorf("%s", resp.Header.Get("Content-Type"))
	}
	large := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "large-"}, BinaryData: map[string][]byte{"b": make([]byte, 200<<10)}}
	if _, err := clients(t, admin).CoreV1().ConfigMaps("default").Create(t.Context(), large, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	resp, _ = raw(t, admin, "/api/v1/namespaces/default/configmaps", http.Header{"Accept-Encoding": {"gzip"}})
	if resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("a large list is not compressed: %v", resp.Header)
	}
	resp, _ = raw(t, admin, "/api/v1/namespaces", http.Header{"Accept": {"text/plain"}})
	if resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("text/plain: %d", resp.StatusCode)
	}
}
