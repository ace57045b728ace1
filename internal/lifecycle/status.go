package lifecycle

import (
	"cmp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	utilnet "k8s.io/utils/net"
)

const (
	reasonRestartingAll = "RestartingAllContainers"
	messageRestarted    = "The container is removed because RestartAllContainers in place"
	reasonStatusUnknown = "ContainerStatusUnknown"
)

func qosClass(pod *v1.Pod) v1.PodQOSClass { return qos.GetPodQOS(pod) }

// containerID is a container's ID as a status gives it.
func (s *step) containerID(id string) string { return s.in.View.Runtime + "://" + id }

// addresses sets hostIP and podIP. A pod that is ending keeps the address it
// had.
func (s *step) addresses(status *v1.PodStatus) {
	for i, ip := range s.in.HostIPs {
		if i == 0 {
			status.HostIP = ip
		}
		if i < 2 {
			status.HostIPs = append(status.HostIPs, v1.HostIP{IP: ip})
		}
	}
	var ips []string
	switch {
	case s.pod.Spec.HostNetwork:
		ips = s.in.HostIPs
	case s.activeSandbox() != "":
		ips = s.in.View.Sandboxes[0].IPs
	}
	status.PodIPs = s.preferred(ips)
	if len(status.PodIPs) == 0 && s.stage != Active {
		status.PodIPs = slices.Clone(s.status.PodIPs)
	}
	if len(status.PodIPs) > 0 {
		status.PodIP = status.PodIPs[0].IP
	}
}

// preferred picks one address of each family, the node's own family first.
func (s *step) preferred(ips []string) []v1.PodIP {
	v6 := len(s.in.HostIPs) > 0 && utilnet.IsIPv6String(s.in.HostIPs[0])
	var picked []v1.PodIP
	for _, want := range []bool{v6, !v6} {
		for _, ip := range ips {
			if parsed := utilnet.ParseIPSloppy(ip); parsed != nil && utilnet.IsIPv6(parsed) == want {
				picked = append(picked, v1.PodIP{IP: parsed.String()})
				break
			}
		}
	}
	return picked
}

func (s *step) allContainerStatuses(status *v1.PodStatus) {
	restarting := s.restartingAll()
	byName := func(a, b v1.ContainerStatus) int { return cmp.Compare(a.Name, b.Name) }
	status.InitContainerStatuses = s.containerStatuses(s.pod.Spec.InitContainers, s.status.InitContainerStatuses, true, restarting)
	status.ContainerStatuses = s.containerStatuses(s.pod.Spec.Containers, s.status.ContainerStatuses, false, restarting)
	slices.SortStableFunc(status.ContainerStatuses, byName)
	var ephemeral []v1.Container
	for i := range s.pod.Spec.EphemeralContainers {
		ephemeral = append(ephemeral, v1.Container(s.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	status.EphemeralContainerStatuses = s.containerStatuses(ephemeral, s.status.EphemeralContainerStatuses, false, restarting)
	slices.SortStableFunc(status.EphemeralContainerStatuses, byName)
}

func (s *step) containerStatuses(specs []v1.Container, previous []v1.ContainerStatus, init, restarting bool) []v1.ContainerStatus {
	out := make([]v1.ContainerStatus, 0, len(specs))
	for i := range specs {
		c := &specs[i]
		var old *v1.ContainerStatus
		if j := slices.IndexFunc(previous, func(p v1.ContainerStatus) bool { return p.Name == c.Name }); j >= 0 {
			old = &previous[j]
		}
		st := s.initialStatus(c, old)
		instances := s.instances(c.Name)
		switch {
		case len(instances) == 0:
			s.absentStatus(&st, old, restarting)
		default:
			st = s.instanceStatus(c, &instances[0], old, restarting)
			if len(instances) > 1 {
				st.LastTerminationState = s.instanceStatus(c, &instances[1], old, restarting).State
			}
		}
		s.waitingStatus(c, &st, init, restarting)
		out = append(out, st)
	}
	return out
}

func (s *step) instances(name string) []Container {
	var list []Container
	for _, inst := range s.containers {
		if inst.Name == name {
			list = append(list, inst)
		}
	}
	return list
}

// defaultWaiting is how a container waits that never started.
func (s *step) defaultWaiting() v1.ContainerState {
	reason := "ContainerCreating"
	if len(s.pod.Spec.InitContainers) > 0 {
		reason = "PodInitializing"
	}
	return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
}

// initialStatus is a container's status without regard to the runtime.
func (s *step) initialStatus(c *v1.Container, old *v1.ContainerStatus) v1.ContainerStatus {
	if old != nil && old.State.Terminated != nil {
		return *old.DeepCopy()
	}
	st := v1.ContainerStatus{Name: c.Name, Image: c.Image, State: s.defaultWaiting(), VolumeMounts: mountStatus(c)}
	if old != nil {
		st.RestartCount = old.RestartCount
		st.LastTerminationState = *old.LastTerminationState.DeepCopy()
	}
	return st
}

func mountStatus(c *v1.Container) []v1.VolumeMountStatus {
	var list []v1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		st := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != v1.RecursiveReadOnlyDisabled {
				// IfPossible is possible: mount_setattr is required of the kernel.
				mode = v1.RecursiveReadOnlyEnabled
			}
			st.RecursiveReadOnly = &mode
		}
		list = append(list, st)
	}
	return list
}

// absentStatus is for a container the runtime knows nothing of. If it ran when
// last seen, it must have ended since, nobody knows how.
func (s *step) absentStatus(st, old *v1.ContainerStatus, restarting bool) {
	if old == nil {
		return
	}
	if restarting && old.State.Waiting == nil {
		st.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reasonRestartingAll, Message: messageRestarted}}
		st.LastTerminationState = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
			Reason: reasonRestartingAll, Message: messageRestarted, ExitCode: 137,
		}}
		st.RestartCount = old.RestartCount + 1
		return
	}
	if old.State.Running == nil || st.LastTerminationState.Terminated != nil {
		return
	}
	st.LastTerminationState.Terminated = &v1.ContainerStateTerminated{
		Reason:   reasonStatusUnknown,
		Message:  "The container could not be located when the pod was deleted.  The container used to be Running",
		ExitCode: 137,
	}
	if s.pod.DeletionTimestamp == nil {
		st.RestartCount++
	}
}

// instanceStatus is the status of one instance in the runtime.
func (s *step) instanceStatus(c *v1.Container, inst *Container, old *v1.ContainerStatus, restarting bool) v1.ContainerStatus {
	id := s.containerID(inst.ID)
	st := v1.ContainerStatus{
		Name: c.Name, Image: inst.Image, ImageID: inst.ImageRef, ContainerID: id,
		RestartCount: inst.RestartCount, VolumeMounts: mountStatus(c),
		User: inst.User, StopSignal: inst.StopSignal,
		Resources: c.Resources.DeepCopy(), AllocatedResources: c.Resources.Requests.DeepCopy(),
	}
	if old != nil {
		st.RestartCount = max(st.RestartCount, old.RestartCount)
		switch {
		case old.ContainerID != id && old.State.Terminated != nil:
			st.LastTerminationState.Terminated = old.State.Terminated.DeepCopy()
		default:
			st.LastTerminationState.Terminated = old.LastTerminationState.Terminated.DeepCopy()
		}
	}
	switch {
	case inst.State == Running:
		st.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(inst.StartedAt)}
		if old != nil && old.State.Terminated != nil && old.RestartCount >= inst.RestartCount {
			st.RestartCount = old.RestartCount + 1
		}
		s.actualResources(inst, st.Resources)
	case inst.State == Exited:
		st.State.Terminated = &v1.ContainerStateTerminated{
			ExitCode: inst.ExitCode, Reason: inst.Reason, Message: inst.Message,
			StartedAt: metav1.NewTime(inst.StartedAt), FinishedAt: metav1.NewTime(inst.FinishedAt),
			ContainerID: id,
		}
	case inst.State == Unknown && old != nil && old.State.Running != nil:
		reason := reasonStatusUnknown
		if restarting {
			reason = reasonRestartingAll
		}
		st.State.Terminated = &v1.ContainerStateTerminated{
			Reason: reason, ExitCode: 137,
			Message: "The container could not be located when the pod was terminated",
		}
		st.RestartCount = old.RestartCount + 1
	case inst.State == Unknown && old != nil && old.State.Terminated != nil:
		st.State = *old.State.DeepCopy()
	default:
		st.State.Waiting = &v1.ContainerStateWaiting{}
	}
	return st
}

// waitingStatus turns the status of a container that shall start, and has
// failed to, into a waiting one that says why.
func (s *step) waitingStatus(c *v1.Container, st *v1.ContainerStatus, init, restarting bool) {
	inst := s.latest(c.Name)
	if init {
		if inst != nil && inst.State == Exited && inst.ExitCode == 0 {
			return
		}
		if inst == nil && !isSidecar(c) && st.State.Waiting != nil && !restarting && s.initializedInSandbox() {
			st.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
				Reason:  "Completed",
				Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
			}}
			return
		}
	}
	f, failed := s.failures[c.Name]
	if !failed || !s.shouldRestart(c, inst) {
		return
	}
	if st.State.Terminated != nil {
		st.LastTerminationState = st.State
	}
	st.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: f.Reason, Message: f.Message}}
}

// restartingAll reports whether a container has asked for all to be restarted
// and that is not done yet.
func (s *step) restartingAll() bool {
	if s.stage != Active {
		return false
	}
	if conditionTrue(s.status.Conditions, v1.AllContainersRestarting) {
		return true
	}
	for _, group := range [][]v1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range group {
			inst := s.latest(group[i].Name)
			if inst != nil && inst.State == Exited && asksToRestartAll(&group[i], inst.ExitCode) {
				return true
			}
		}
	}
	return false
}

// normalize makes a status what the API serves: whole seconds, and messages
// that leave room for those of the other containers.
func (s *step) normalize(status *v1.PodStatus) {
	const budget = 12 << 10
	room := budget / max(1, len(s.spec))
	second := func(t *metav1.Time) { *t = t.Rfc3339Copy() }
	if status.StartTime != nil {
		second(status.StartTime)
	}
	for i := range status.Conditions {
		second(&status.Conditions[i].LastTransitionTime)
	}
	for _, list := range [][]v1.ContainerStatus{status.InitContainerStatuses, status.ContainerStatuses, status.EphemeralContainerStatuses} {
		for i := range list {
			for _, state := range []*v1.ContainerState{&list[i].State, &list[i].LastTerminationState} {
				if state.Running != nil {
					second(&state.Running.StartedAt)
				}
				if t := state.Terminated; t != nil {
					second(&t.StartedAt)
					second(&t.FinishedAt)
					if len(t.Message) > room {
						t.Message = strings.ToValidUTF8(t.Message[:room], "")
					}
				}
			}
		}
	}
}
