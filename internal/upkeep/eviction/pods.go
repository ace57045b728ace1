package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	v1resource "k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	kubelettypes "k8s.io/kubernetes/pkg/kubelet/types"
)

// Reason is the reason of evicted pods, and of those not admitted.
const Reason = "Evicted"

// immediate is the grace of pods whose resource the node needs now.
const immediate = time.Second

// Figures are what pods use, by UID.
type Figures map[string]statsapi.PodStats

// NewFigures indexes a summary.
func NewFigures(pods []statsapi.PodStats) Figures {
	f := Figures{}
	for _, p := range pods {
		f[p.PodRef.UID] = p
	}
	return f
}

func (f Figures) of(pod *v1.Pod) (statsapi.PodStats, bool) {
	st, ok := f[string(pod.UID)]
	return st, ok
}

// usage is what a pod takes of the resource a threshold is about.
func usage(r *Reclaim, l Layout, pod *v1.Pod, st *statsapi.PodStats) resource.Quantity {
	var q resource.Quantity
	add := func(n *uint64) {
		if n != nil {
			q.Add(*resource.NewQuantity(int64(*n), resource.BinarySI))
		}
	}
	if r.Resource == v1.ResourceMemory {
		if st.Memory != nil {
			add(st.Memory.WorkingSetBytes)
		}
		return q
	}
	files := func(fs *statsapi.FsStats) {
		switch {
		case fs == nil:
		case r.Resource == resourceInodes:
			add(fs.InodesUsed)
		default:
			add(fs.UsedBytes)
		}
	}
	image := r.Signal == evictionapi.SignalImageFsAvailable || r.Signal == evictionapi.SignalImageFsInodesFree
	layers := !l.ImageFs || image && !l.SplitImageFs || !image && l.SplitImageFs
	rest := !l.ImageFs || !image
	for i := range st.Containers {
		if layers {
			files(st.Containers[i].Rootfs)
		}
		if rest {
			files(st.Containers[i].Logs)
		}
	}
	for i := range st.VolumeStats {
		if rest && isLocal(pod, st.VolumeStats[i].Name) {
			files(&st.VolumeStats[i].FsStats)
		}
	}
	return q
}

// isLocal tells whether a volume is on the node's disk.
func isLocal(pod *v1.Pod, name string) bool {
	i := slices.IndexFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return v.Name == name })
	if i < 0 {
		return false
	}
	v := &pod.Spec.Volumes[i]
	return v.HostPath != nil || v.ConfigMap != nil || v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault
}

// Rank orders pods: those that had better go first.
func Rank(r *Reclaim, l Layout, pods []*v1.Pod, figures Figures) []*v1.Pod {
	ranked := slices.Clone(pods)
	priority := func(a, b *v1.Pod) int {
		return cmp.Compare(corev1helpers.PodPriority(a), corev1helpers.PodPriority(b))
	}
	if r.Resource == resourcePids {
		processes := func(p *v1.Pod) uint64 {
			st, _ := figures.of(p)
			if st.ProcessStats == nil || st.ProcessStats.ProcessCount == nil {
				return 0
			}
			return *st.ProcessStats.ProcessCount
		}
		slices.SortStableFunc(ranked, func(a, b *v1.Pod) int {
			return cmp.Or(priority(a, b), cmp.Compare(processes(b), processes(a)))
		})
		return ranked
	}
	// Nobody can request inodes, so kubelet counts use against storage there.
	requested := r.Resource
	if requested == resourceInodes {
		requested = v1.ResourceEphemeralStorage
	}
	type claim struct {
		known, exceeds bool
		over           resource.Quantity
	}
	claims := map[*v1.Pod]claim{}
	for _, p := range ranked {
		st, known := figures.of(p)
		used := usage(r, l, p, &st)
		c := claim{known: known, exceeds: used.Cmp(v1resource.GetResourceRequestQuantity(p, r.Resource)) > 0, over: used}
		c.over.Sub(v1resource.GetResourceRequestQuantity(p, requested))
		claims[p] = c
	}
	first := func(a, b bool) int { // who is it comes first
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	slices.SortStableFunc(ranked, func(a, b *v1.Pod) int {
		x, y := claims[a], claims[b]
		if !x.known || !y.known {
			return cmp.Or(first(!x.known, !y.known), priority(a, b))
		}
		return cmp.Or(first(x.exceeds, y.exceeds), priority(a, b), y.over.Cmp(x.over))
	})
	return ranked
}

// Evictable tells whether a pod may go at all: the node's own don't.
func Evictable(pod *v1.Pod) bool { return !kubelettypes.IsCriticalPod(pod) }

// Eviction is how a pod goes.
type Eviction struct {
	Message     string
	Annotations map[string]string
	Grace       time.Duration
	Condition   *v1.PodCondition
}

// Of is the eviction of one pod.
func Of(p Policy, r *Reclaim, pod *v1.Pod, figures Figures) Eviction {
	message, annotations := explain(r, pod, figures)
	grace := immediate
	if !r.Hard {
		grace = p.MaxPodGrace
		if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
			grace = min(grace, time.Duration(*g)*time.Second)
		}
	}
	return Eviction{Message: message, Annotations: annotations, Grace: grace, Condition: &v1.PodCondition{
		Type: v1.DisruptionTarget, ObservedGeneration: pod.Generation, Status: v1.ConditionTrue,
		Reason: v1.PodReasonTerminationByKubelet, Message: message,
	}}
}

// explain says why a pod goes, in kubelet's words.
func explain(r *Reclaim, pod *v1.Pod, figures Figures) (string, map[string]string) {
	annotations := map[string]string{}
	message := fmt.Sprintf("The node was low on resource: %v. ", r.Resource)
	if r.quantity != nil && r.available != nil {
		message += fmt.Sprintf("Threshold quantity: %v, available: %v. ", r.quantity, r.available)
	}
	st, ok := figures.of(pod)
	if !ok {
		return message, annotations
	}
	if r.Resource == v1.ResourceMemory && resourcehelper.IsPodLevelResourcesSet(pod) && st.Memory != nil && st.Memory.WorkingSetBytes != nil {
		if request, ok := pod.Spec.Resources.Requests[r.Resource]; ok {
			used := resource.NewQuantity(int64(*st.Memory.WorkingSetBytes), resource.BinarySI)
			message += fmt.Sprintf("Pod %s was using %s, request is %s, has larger consumption of %v. ", pod.Name, used, request.String(), r.Resource)
			annotations["offending_pod"], annotations["offending_pod_usage"] = pod.Name, used.String()
		}
	}
	var offenders, usages []string
	for i := range st.Containers {
		c := &st.Containers[i]
		spec := findContainer(pod, c.Name)
		used := containerUsage(r.Resource, c)
		if spec == nil || used == nil {
			continue
		}
		request := spec.Resources.Requests[r.Resource]
		if used.Cmp(request) <= 0 {
			continue
		}
		message += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %v. ", c.Name, used, request.String(), r.Resource)
		offenders, usages = append(offenders, c.Name), append(usages, used.String())
	}
	annotations["offending_containers"] = strings.Join(offenders, ",")
	annotations["offending_containers_usage"] = strings.Join(usages, ",")
	annotations["starved_resource"] = string(r.Resource)
	return message, annotations
}

func findContainer(pod *v1.Pod, name string) *v1.Container {
	for c := range podutil.ContainerIter(&pod.Spec, podutil.Containers|podutil.InitContainers) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// containerUsage is what one container takes of a resource, nil if nobody
// knows.
func containerUsage(name v1.ResourceName, c *statsapi.ContainerStats) *resource.Quantity {
	switch {
	case name == v1.ResourceMemory && c.Memory != nil && c.Memory.WorkingSetBytes != nil:
		return resource.NewQuantity(int64(*c.Memory.WorkingSetBytes), resource.BinarySI)
	case name == v1.ResourceEphemeralStorage && c.Rootfs != nil && c.Rootfs.UsedBytes != nil && c.Logs != nil && c.Logs.UsedBytes != nil:
		return resource.NewQuantity(int64(*c.Rootfs.UsedBytes+*c.Logs.UsedBytes), resource.BinarySI)
	}
	return nil
}

// Limited tells whether a pod has limits of storage that somebody must watch:
// the kernel keeps none of them.
func Limited(pod *v1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if d := pod.Spec.Volumes[i].EmptyDir; d != nil && d.SizeLimit != nil && d.SizeLimit.Sign() > 0 && d.Medium == v1.StorageMediumDefault {
			return true
		}
	}
	for c := range podutil.ContainerIter(&pod.Spec, podutil.Containers|podutil.InitContainers) {
		if q := c.Resources.Limits.StorageEphemeral(); !q.IsZero() {
			return true
		}
	}
	return false
}

// OverLimit is the eviction of a pod that has outgrown one of its limits of
// storage; false if it hasn't.
func OverLimit(l Layout, pod *v1.Pod, st *statsapi.PodStats) (Eviction, bool) {
	if message := overLimit(l, pod, st); message != "" {
		return Eviction{Message: message, Grace: immediate}, true
	}
	return Eviction{}, false
}

func overLimit(l Layout, pod *v1.Pod, st *statsapi.PodStats) string {
	exceeds := func(fs *statsapi.FsStats, limit resource.Quantity) bool {
		return fs != nil && fs.UsedBytes != nil && resource.NewQuantity(int64(*fs.UsedBytes), resource.BinarySI).Cmp(limit) > 0
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.Medium != v1.StorageMediumDefault || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		for j := range st.VolumeStats {
			if st.VolumeStats[j].Name == v.Name && exceeds(&st.VolumeStats[j].FsStats, *v.EmptyDir.SizeLimit) {
				return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
			}
		}
	}
	if limit, ok := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && exceeds(st.EphemeralStorage, limit) {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for i := range st.Containers {
		c := &st.Containers[i]
		spec := findContainer(pod, c.Name)
		if spec == nil || spec.Resources.Limits.StorageEphemeral().IsZero() || isInit(pod, c.Name) {
			continue
		}
		used := uint64(0)
		for _, fs := range []*statsapi.FsStats{c.Logs, c.Rootfs} {
			// On a file system of their own, layers are images' business.
			if fs != nil && fs.UsedBytes != nil && (fs == c.Logs || !l.ImageFs) {
				used += *fs.UsedBytes
			}
		}
		limit := spec.Resources.Limits.StorageEphemeral()
		if exceeds(&statsapi.FsStats{UsedBytes: &used}, *limit) {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

// isInit tells of an init container that isn't a sidecar.
func isInit(pod *v1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c v1.Container) bool {
		return c.Name == name && !podutil.IsRestartableInitContainer(&c)
	})
}

// Admit tells whether a node with these conditions takes a pod in: if not,
// with which reason and message.
func Admit(conditions []v1.NodeConditionType, pod *v1.Pod) (reason, message string) {
	if len(conditions) == 0 || kubelettypes.IsCriticalPod(pod) {
		return "", ""
	}
	if len(conditions) == 1 && conditions[0] == v1.NodeMemoryPressure &&
		(qos.GetPodQOS(pod) != v1.PodQOSBestEffort || toleratesMemoryPressure(pod)) {
		return "", ""
	}
	return Reason, fmt.Sprintf("The node had condition: %v. ", conditions)
}

func toleratesMemoryPressure(pod *v1.Pod) bool {
	taint := v1.Taint{Key: v1.TaintNodeMemoryPressure, Effect: v1.TaintEffectNoSchedule}
	// The logger is for tolerations that compare numbers, which are off.
	return corev1helpers.TolerationsTolerateTaint(klog.Logger{}, pod.Spec.Tolerations, &taint, false)
}
