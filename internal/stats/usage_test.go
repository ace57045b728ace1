package stats

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"
)

func TestPodMetrics(t *testing.T) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", Labels: map[string]string{"app": "a"}}}
	at := metav1.NewTime(time.Unix(100, 0))
	container := func(name string, cpu, memory *uint64) statsapi.ContainerStats {
		return statsapi.ContainerStats{
			Name: name, CPU: &statsapi.CPUStats{Time: at, UsageNanoCores: cpu}, Memory: &statsapi.MemoryStats{WorkingSetBytes: memory},
		}
	}
	figures := &statsapi.PodStats{Containers: []statsapi.ContainerStats{container("a", ptr.To[uint64](250e6), ptr.To[uint64](32<<20))}}
	m, ok := PodMetrics(pod, figures)
	if !ok || m.Name != "p" || m.Namespace != "n" || m.Labels["app"] != "a" || !m.Timestamp.Equal(&at) || len(m.Containers) != 1 {
		t.Fatalf("%v %+v", ok, m)
	}
	if cpu, memory := m.Containers[0].Usage.Cpu().String(), m.Containers[0].Usage.Memory().String(); cpu != "250m" || memory != "32Mi" {
		t.Errorf("cpu %s, memory %s", cpu, memory)
	}
	// A pod is told of whole or not at all.
	figures.Containers = append(figures.Containers, container("b", nil, ptr.To[uint64](1)))
	if _, ok := PodMetrics(pod, figures); ok {
		t.Error("half a pod")
	}
	if _, ok := PodMetrics(pod, &statsapi.PodStats{}); ok {
		t.Error("an empty pod")
	}
}
