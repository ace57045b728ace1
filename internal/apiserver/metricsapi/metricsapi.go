// Package metricsapi is the API group metrics.k8s.io: what pods and the node
// use, as kubectl top, autoscalers and tables read it.
//
// It owns no figures: a [Source] has them, is asked at each request and may be
// asked concurrently. Nothing is stored. Floor: 7, a part of apiserver.
package metricsapi

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/metrics/pkg/apis/metrics"
	"k8s.io/metrics/pkg/apis/metrics/install"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// A Source knows what is used now.
type Source interface {
	// NodeMetrics are of every node; a node that isn't measured yet is left out.
	NodeMetrics(ctx context.Context) ([]metricsv1beta1.NodeMetrics, error)
	// PodMetrics are of the running pods of a namespace, "" for all. Labels are
	// the pods' own: selectors are matched with them.
	PodMetrics(ctx context.Context, namespace string) ([]metricsv1beta1.PodMetrics, error)
}

// Scheme and its codecs are the group's.
var (
	Scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(Scheme)
)

func init() {
	install.Install(Scheme)
	metav1.AddToGroupVersion(Scheme, schema.GroupVersion{Version: "v1"})
	Scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"}, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
}

// Group is what is to be installed.
func Group(source Source) genericapiserver.APIGroupInfo {
	info := genericapiserver.NewDefaultAPIGroupInfo(metrics.GroupName, Scheme, runtime.NewParameterCodec(Scheme), codecs)
	for _, v := range info.PrioritizedVersions {
		info.VersionedResourcesStorageMap[v.Version] = map[string]rest.Storage{"nodes": nodes{kind{source}}, "pods": pods{kind{source}}}
	}
	return info
}

// kind is what both resources have in common.
type kind struct{ source Source }

func (kind) Destroy() {}

func (k kind) known(resource string) error {
	if k.source == nil {
		return apierrors.NewServiceUnavailable("nothing measures " + resource + " here")
	}
	return nil
}

type nodes struct{ kind }

func (nodes) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (nodes) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (nodes) Kind() string            { return "NodeMetrics" }
func (nodes) NamespaceScoped() bool   { return false }
func (nodes) GetSingularName() string { return "" }

func (n nodes) items(ctx context.Context) ([]metrics.NodeMetrics, error) {
	if err := n.known("nodes"); err != nil {
		return nil, err
	}
	found, err := n.source.NodeMetrics(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("measuring the node: %w", err))
	}
	out := make([]metrics.NodeMetrics, len(found))
	for i := range found {
		if err := metricsv1beta1.Convert_v1beta1_NodeMetrics_To_metrics_NodeMetrics(&found[i], &out[i], nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (n nodes) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	items, err := n.items(ctx)
	if err != nil {
		return nil, err
	}
	for i := range items {
		if items[i].Name == name {
			return &items[i], nil
		}
	}
	return nil, apierrors.NewNotFound(metrics.Resource("nodes"), name)
}

func (n nodes) List(ctx context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	items, err := n.items(ctx)
	if err != nil {
		return nil, err
	}
	list := &metrics.NodeMetricsList{Items: []metrics.NodeMetrics{}}
	for i := range items {
		if selects(o, &items[i].ObjectMeta) {
			list.Items = append(list.Items, items[i])
		}
	}
	return list, nil
}

func (n nodes) ConvertToTable(_ context.Context, obj, _ runtime.Object) (*metav1.Table, error) {
	return table(obj, func(o runtime.Object) ([]any, error) {
		m, ok := o.(*metrics.NodeMetrics)
		if !ok {
			return nil, fmt.Errorf("%T is no NodeMetrics", o)
		}
		return row(m.Name, m.Usage, m.Window), nil
	})
}

type pods struct{ kind }

func (pods) New() runtime.Object     { return &metrics.PodMetrics{} }
func (pods) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (pods) Kind() string            { return "PodMetrics" }
func (pods) NamespaceScoped() bool   { return true }
func (pods) GetSingularName() string { return "" }

func (p pods) items(ctx context.Context) ([]metrics.PodMetrics, error) {
	if err := p.known("pods"); err != nil {
		return nil, err
	}
	found, err := p.source.PodMetrics(ctx, genericapirequest.NamespaceValue(ctx))
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("measuring pods: %w", err))
	}
	out := make([]metrics.PodMetrics, len(found))
	for i := range found {
		if err := metricsv1beta1.Convert_v1beta1_PodMetrics_To_metrics_PodMetrics(&found[i], &out[i], nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (p pods) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	items, err := p.items(ctx)
	if err != nil {
		return nil, err
	}
	for i := range items {
		if items[i].Name == name {
			return &items[i], nil
		}
	}
	return nil, apierrors.NewNotFound(metrics.Resource("pods"), name)
}

func (p pods) List(ctx context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	items, err := p.items(ctx)
	if err != nil {
		return nil, err
	}
	list := &metrics.PodMetricsList{Items: []metrics.PodMetrics{}}
	for i := range items {
		if selects(o, &items[i].ObjectMeta) {
			list.Items = append(list.Items, items[i])
		}
	}
	return list, nil
}

func (p pods) ConvertToTable(_ context.Context, obj, _ runtime.Object) (*metav1.Table, error) {
	return table(obj, func(o runtime.Object) ([]any, error) {
		m, ok := o.(*metrics.PodMetrics)
		if !ok {
			return nil, fmt.Errorf("%T is no PodMetrics", o)
		}
		sum := corev1.ResourceList{}
		for _, c := range m.Containers {
			for name, q := range c.Usage {
				s := sum[name]
				s.Add(q)
				sum[name] = s
			}
		}
		return row(m.Name, sum, m.Window), nil
	})
}

func selects(o *metainternalversion.ListOptions, m *metav1.ObjectMeta) bool {
	if o == nil {
		return true
	}
	if o.LabelSelector != nil && !o.LabelSelector.Matches(labels.Set(m.Labels)) {
		return false
	}
	return o.FieldSelector == nil || o.FieldSelector.Matches(fields.Set{"metadata.name": m.Name, "metadata.namespace": m.Namespace})
}

func row(name string, usage corev1.ResourceList, window metav1.Duration) []any {
	cpu, memory := usage[corev1.ResourceCPU], usage[corev1.ResourceMemory]
	return []any{name, fmt.Sprintf("%dm", cpu.MilliValue()), mebibytes(memory), window.Duration.Round(time.Millisecond).String()}
}

func mebibytes(q resource.Quantity) string { return fmt.Sprintf("%dMi", q.Value()>>20) }

func table(obj runtime.Object, cells func(runtime.Object) ([]any, error)) (*metav1.Table, error) {
	t := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of what is measured"},
		{Name: "CPU", Type: "string", Description: "Processor time used, in thousandths of a core"},
		{Name: "Memory", Type: "string", Description: "Working set, in MiB"},
		{Name: "Window", Type: "string", Description: "What time the figures are of"},
	}}
	add := func(o runtime.Object) error {
		c, err := cells(o)
		if err != nil {
			return err
		}
		t.Rows = append(t.Rows, metav1.TableRow{Cells: c, Object: runtime.RawExtension{Object: o}})
		return nil
	}
	if meta.IsListType(obj) {
		if l, err := meta.ListAccessor(obj); err == nil {
			t.ResourceVersion = l.GetResourceVersion()
		}
		return t, meta.EachListItem(obj, add)
	}
	return t, add(obj)
}
