package register

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"
	"k8s.io/component-helpers/nodedeclaredfeatures/features/restartallcontainers"
	ndftypes "k8s.io/component-helpers/nodedeclaredfeatures/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/machine"
)

const (
	maxImages = 50 // of those in the status, the largest; kubelet's
	maxNames  = 5  // of one image
)

func labels(name string) map[string]string {
	return map[string]string{
		v1.LabelHostname: name, v1.LabelOSStable: runtime.GOOS, v1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
}

// fill brings a node's status up to date. old is what it was before, nil for
// a new node.
func (n *Node) fill(ctx context.Context, st, old *v1.NodeStatus) {
	st.Capacity, st.Allocatable = resources(&n.facts, st.Capacity, n.cfg.MaxPods, n.cfg.Reserved)
	st.Addresses = nil
	for _, a := range n.cfg.Addresses {
		st.Addresses = append(st.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a.String()})
	}
	st.Addresses = append(st.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: n.cfg.Name})
	st.DaemonEndpoints.KubeletEndpoint.Port = n.cfg.Port
	st.NodeInfo = v1.NodeSystemInfo{
		MachineID: n.facts.MachineID, SystemUUID: n.facts.SystemUUID, BootID: n.facts.BootID,
		KernelVersion: n.facts.Kernel, OSImage: n.facts.OSImage, OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		KubeletVersion: n.cfg.Version, ContainerRuntimeVersion: "Unknown://Unknown",
	}
	if n.facts.Swap > 0 {
		st.NodeInfo.Swap = &v1.NodeSwapStatus{Capacity: &n.facts.Swap}
	}
	if v, err := n.cfg.CRI.Version(ctx, &runtimeapi.VersionRequest{Version: "0.1.0"}); err == nil {
		st.NodeInfo.ContainerRuntimeVersion = v.RuntimeName + "://" + v.RuntimeVersion
	}
	runtimeStatus, err := n.cfg.CRI.Status(ctx, &runtimeapi.StatusRequest{})
	if err == nil {
		features(st, runtimeStatus)
	}
	st.DeclaredFeatures = declared()
	n.listImages(ctx)
	st.Images = n.images
	problem := runtimeProblem(runtimeStatus, err)
	if n.cfg.Problem != nil {
		problem = errors.Join(problem, n.cfg.Problem())
	}
	n.conditions(st, old, problem)
}

// resources are what the machine has and what of it pods may have. Capacity
// that others advertise stays.
func resources(f *machine.Facts, capacity v1.ResourceList, maxPods int64, reserved v1.ResourceList) (v1.ResourceList, v1.ResourceList) {
	all := v1.ResourceList{}
	for name, q := range capacity {
		if v1helper.IsExtendedResourceName(name) {
			all[name] = q
		}
	}
	all[v1.ResourceCPU] = *resource.NewQuantity(int64(f.CPUs), resource.DecimalSI)
	all[v1.ResourceMemory] = *resource.NewQuantity(f.Memory, resource.BinarySI)
	all[v1.ResourcePods] = *resource.NewQuantity(maxPods, resource.DecimalSI)
	all[v1.ResourceEphemeralStorage] = *resource.NewQuantity(f.Disk, resource.BinarySI)
	huge := int64(0)
	for size, bytes := range f.HugePages {
		all[v1.ResourceName(v1.ResourceHugePagesPrefix+size)] = *resource.NewQuantity(bytes, resource.BinarySI)
		huge += bytes
	}
	if reserved == nil {
		reserved = v1.ResourceList{
			v1.ResourceMemory:           resource.MustParse("100Mi"),
			v1.ResourceEphemeralStorage: *resource.NewQuantity(f.Disk/10, resource.BinarySI),
		}
	}
	allocatable := v1.ResourceList{}
	for name, q := range all {
		left := q.DeepCopy()
		left.Sub(reserved[name])
		if name == v1.ResourceMemory {
			left.Sub(*resource.NewQuantity(huge, resource.BinarySI))
		}
		if left.Sign() < 0 {
			left.Set(0)
		}
		allocatable[name] = left
	}
	return all, allocatable
}

// features are what the runtime says it can do.
func features(st *v1.NodeStatus, resp *runtimeapi.StatusResponse) {
	st.RuntimeHandlers = nil
	for _, h := range resp.RuntimeHandlers {
		st.RuntimeHandlers = append(st.RuntimeHandlers, v1.NodeRuntimeHandler{Name: h.Name, Features: &v1.NodeRuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: ptr.To(h.GetFeatures().GetRecursiveReadOnlyMounts()),
			UserNamespaces:          ptr.To(h.GetFeatures().GetUserNamespaces()),
		}})
	}
	slices.SortFunc(st.RuntimeHandlers, func(a, b v1.NodeRuntimeHandler) int { return cmp.Compare(a.Name, b.Name) })
	if f := resp.Features; f != nil {
		st.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: &f.SupplementalGroupsPolicy}
	}
}

// declared are the features that the scheduler asks of a node before it gives
// it a pod that needs them, as far as the gates and the lifecycle have them.
func declared() []string {
	gate := func(name string) bool { return utilfeature.DefaultFeatureGate.Enabled(featuregate.Feature(name)) }
	carriedOut := ndf.New([]ndftypes.Feature{restartallcontainers.Feature})
	return carriedOut.DiscoverNodeFeatures(&ndftypes.NodeConfiguration{FeatureGates: gates(gate)})
}

// gates is a function as the feature gates that discovery asks.
type gates func(name string) bool

// Enabled implements ndftypes.FeatureGate.
func (g gates) Enabled(name string) bool { return g(name) }

// listImages lists the largest images, now and then.
func (n *Node) listImages(ctx context.Context) {
	now := n.cfg.Clock.Now()
	if n.imagesAt.Add(imagesAge).After(now) {
		return
	}
	resp, err := n.cfg.CRI.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.cfg.Log.Warn("listing images for the node's status failed", "err", err)
		return
	}
	n.imagesAt = now
	slices.SortFunc(resp.Images, func(a, b *runtimeapi.Image) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Id, b.Id))
	})
	n.images = nil
	for _, image := range resp.Images[:min(len(resp.Images), maxImages)] {
		names := append(slices.Clone(image.RepoDigests), image.RepoTags...)
		n.images = append(n.images, v1.ContainerImage{Names: names[:min(len(names), maxNames)], SizeBytes: int64(image.Size)})
	}
}

// runtimeProblem is why the runtime can't run pods, nil if it can.
func runtimeProblem(resp *runtimeapi.StatusResponse, err error) error {
	if err != nil {
		return fmt.Errorf("container runtime is down: %w", err)
	}
	var problems []error
	for _, want := range []struct{ condition, text string }{
		{"RuntimeReady", "container runtime not ready"}, {"NetworkReady", "container runtime network not ready"},
	} {
		i := slices.IndexFunc(resp.GetStatus().GetConditions(), func(c *runtimeapi.RuntimeCondition) bool { return c.Type == want.condition })
		switch {
		case i < 0:
			problems = append(problems, fmt.Errorf("%s: it doesn't report %s", want.text, want.condition))
		case !resp.Status.Conditions[i].Status:
			c := resp.Status.Conditions[i]
			problems = append(problems, fmt.Errorf("%s: %s=false reason:%s message:%s", want.text, c.Type, c.Reason, c.Message))
		}
	}
	return errors.Join(problems...)
}

// noPressure are the conditions of a node that nobody watches.
var noPressure = []v1.NodeCondition{
	{Type: v1.NodeMemoryPressure, Status: v1.ConditionFalse, Reason: "KubeletHasSufficientMemory", Message: "kubelet has sufficient memory available"},
	{Type: v1.NodeDiskPressure, Status: v1.ConditionFalse, Reason: "KubeletHasNoDiskPressure", Message: "kubelet has no disk pressure"},
	{Type: v1.NodePIDPressure, Status: v1.ConditionFalse, Reason: "KubeletHasSufficientPID", Message: "kubelet has sufficient PID available"},
}

// conditions sets the node's conditions, Ready last as kubelet does. Those of
// others stay.
func (n *Node) conditions(st, old *v1.NodeStatus, problem error) {
	ours := noPressure
	if n.cfg.Pressure != nil {
		ours = n.cfg.Pressure.NodeConditions()
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if problem != nil {
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", strings.ReplaceAll(problem.Error(), "\n", ", ")
	}
	ours = append(slices.Clone(ours), ready)
	now := metav1.NewTime(n.cfg.Clock.Now())
	others := slices.DeleteFunc(slices.Clone(st.Conditions), func(c v1.NodeCondition) bool {
		return slices.ContainsFunc(ours, func(o v1.NodeCondition) bool { return o.Type == c.Type })
	})
	for i := range ours {
		c := &ours[i]
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		if before := condition(old, c.Type); before != nil && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
	}
	st.Conditions = append(others, ours...)
}

func condition(st *v1.NodeStatus, t v1.NodeConditionType) *v1.NodeCondition {
	if st == nil {
		return nil
	}
	for i := range st.Conditions {
		if st.Conditions[i].Type == t {
			return &st.Conditions[i]
		}
	}
	return nil
}

// changed tells whether there is more to write than that time has passed.
func changed(old, now *v1.NodeStatus) bool {
	timeless := func(st *v1.NodeStatus) *v1.NodeStatus {
		st = st.DeepCopy()
		for i := range st.Conditions {
			st.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
		slices.SortFunc(st.Conditions, func(a, b v1.NodeCondition) int { return cmp.Compare(a.Type, b.Type) })
		return st
	}
	return !equality.Semantic.DeepEqual(timeless(old), timeless(now))
}
