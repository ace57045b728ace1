package kubeletapi

import (
	"encoding/json"
	"net/http"
	"strconv"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"unipod.dev/unipod/internal/kubeletapi/exposition"
)

// pods serves the pods that are to run here.
func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := &v1.PodList{}
	for _, pod := range s.cfg.Pods() {
		list.Items = append(list.Items, *pod)
	}
	s.answerPods(w, list)
}

// runningPods serves the pods the runtime runs, whoever wants them.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	containers, err := s.cfg.CRI.ListContainers(r.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	sandboxes, err := s.cfg.CRI.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	list := &v1.PodList{}
	for _, sb := range sandboxes.Items {
		m := sb.GetMetadata()
		pod := v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: m.GetNamespace(), Name: m.GetName(), UID: types.UID(m.GetUid())}}
		for _, c := range containers.Containers {
			if c.PodSandboxId == sb.Id {
				pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: c.GetMetadata().GetName(), Image: c.GetImage().GetUserSpecifiedImage()})
			}
		}
		list.Items = append(list.Items, pod)
	}
	s.answerPods(w, list)
}

func (s *Server) answerPods(w http.ResponseWriter, list *v1.PodList) {
	data, err := runtime.Encode(legacyscheme.Codecs.LegacyCodec(v1.SchemeGroupVersion), list)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data)
}

// summary serves what the node and its pods use.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	light, _ := strconv.ParseBool(r.URL.Query().Get("only_cpu_and_memory"))
	var summary *statsapi.Summary
	var err error
	if light {
		summary, err = s.cfg.Stats.GetCPUAndMemoryStats(r.Context())
	} else {
		// Kubelet's is not made anew for each question either.
		summary, err = s.cfg.Stats.Get(r.Context(), false)
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	_ = enc.Encode(summary)
}

// resourceMetrics serves the figures that autoscalers scrape.
func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	summary, err := s.cfg.Stats.GetCPUAndMemoryStats(r.Context())
	var p exposition.Page
	failed := p.Family("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise")
	if err != nil {
		s.cfg.Log.Warn("measuring for metrics/resource failed", "err", err)
		failed.Add(1, 0)
		p.Serve(w)
		return
	}
	failed.Add(0, 0)
	resources(&p, summary)
	p.Serve(w)
}

func label(name, value string) exposition.Label { return exposition.Label{Name: name, Value: value} }

func resources(p *exposition.Page, summary *statsapi.Summary) {
	const seconds = 1e9
	usage := func(prefix, what string, cpu *statsapi.CPUStats, memory *statsapi.MemoryStats, swap *statsapi.SwapStats, labels ...exposition.Label) {
		if cpu != nil && cpu.UsageCoreNanoSeconds != nil {
			p.Family(prefix+"_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the "+what+" in core-seconds").
				Add(float64(*cpu.UsageCoreNanoSeconds)/seconds, cpu.Time.UnixMilli(), labels...)
		}
		if memory != nil && memory.WorkingSetBytes != nil {
			p.Family(prefix+"_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the "+what+" in bytes").
				Add(float64(*memory.WorkingSetBytes), memory.Time.UnixMilli(), labels...)
		}
		if swap != nil && swap.SwapUsageBytes != nil {
			p.Family(prefix+"_swap_usage_bytes", "gauge", "[ALPHA] Current swap usage of the "+what+" in bytes. Reported only on non-windows systems").
				Add(float64(*swap.SwapUsageBytes), swap.Time.UnixMilli(), labels...)
		}
	}
	usage("node", "node", summary.Node.CPU, summary.Node.Memory, summary.Node.Swap)
	for i := range summary.Pods {
		pod := &summary.Pods[i]
		of := []exposition.Label{label("namespace", pod.PodRef.Namespace), label("pod", pod.PodRef.Name)}
		for j := range pod.Containers {
			c := &pod.Containers[j]
			labels := append([]exposition.Label{label("container", c.Name)}, of...)
			usage("container", "container", c.CPU, c.Memory, c.Swap, labels...)
			if !c.StartTime.IsZero() {
				p.Family("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds").
					Add(float64(c.StartTime.UnixNano())/seconds, 0, labels...)
			}
		}
		usage("pod", "pod", pod.CPU, pod.Memory, pod.Swap, of...)
	}
}

// containerMetrics serves what the runtime tells of its containers, under the
// names cAdvisor gave them.
func (s *Server) containerMetrics(w http.ResponseWriter, r *http.Request) {
	descriptors, err := s.cfg.CRI.ListMetricDescriptors(r.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		s.refuse(w, err)
		return
	}
	figures, err := s.cfg.CRI.ListPodSandboxMetrics(r.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		s.refuse(w, err)
		return
	}
	known := map[string]*runtimeapi.MetricDescriptor{}
	for _, d := range descriptors.Descriptors {
		known[d.Name] = d
	}
	var p exposition.Page
	add := func(list []*runtimeapi.Metric) {
		for _, m := range list {
			d := known[m.Name]
			if d == nil || len(d.LabelKeys) != len(m.LabelValues) || m.Value == nil {
				continue // an error of the runtime, which must not cost the rest
			}
			kind := "gauge"
			if m.MetricType == runtimeapi.MetricType_COUNTER {
				kind = "counter"
			}
			labels := make([]exposition.Label, len(d.LabelKeys))
			for i, key := range d.LabelKeys {
				labels[i] = label(key, m.LabelValues[i])
			}
			p.Family(m.Name, kind, d.Help).Add(float64(m.Value.Value), m.Timestamp/1e6, labels...)
		}
	}
	for _, pod := range figures.PodMetrics {
		add(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			add(c.Metrics)
		}
	}
	p.Serve(w)
}

// probeMetrics serves how the pods' probes went.
func (s *Server) probeMetrics(w http.ResponseWriter, _ *http.Request) {
	var p exposition.Page
	for _, c := range s.cfg.Probes() {
		p.Family("prober_probe_total", "counter", "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.").
			Add(float64(c.Count), 0, label("container", c.Container), label("namespace", c.Pod.Namespace), label("pod", c.Pod.Name),
				label("pod_uid", string(c.Pod.UID)), label("probe_type", c.Kind), label("result", c.Result))
	}
	p.Serve(w)
}
