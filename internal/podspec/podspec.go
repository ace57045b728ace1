// Package podspec translates a Kubernetes Pod into what the CRI is asked for:
// [SandboxConfig] makes a PodSandboxConfig and [ContainerConfig] a
// ContainerConfig, field for field what kubelet would send for the same pod on
// the same node.
//
// It owns nothing and does nothing: every function is pure. What the
// translation needs to know about the world (the node, ConfigMaps and Secrets,
// the image's user, the pod's addresses, the mounts made by package volume) is
// a parameter, so its output is a golden text. Two small readers of foreign
// input live here because their formats belong to the translation:
// [ParseResolvConf] and [ParseContainer].
//
// Where kubelet's result depends on Go's map order (the environment, DNS
// options) the order here is fixed: sorted names where the manifest gives no
// order, and the manifest's order where it does.
//
// Errors of a container's configuration are *[ConfigError]; their text is
// kubelet's and becomes the message of the CreateContainerConfigError state.
//
// Floor: 5, beside volume, manifest and lifecycle. It imports only the CRI's
// types and Kubernetes' own helpers.
package podspec

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what the configuration of a pod takes from the node it runs on.
// It is read only; one value serves any number of concurrent translations.
type Node struct {
	// HostIPs are the node's addresses, the primary one first. Its family is
	// also the preferred family of the pods' addresses.
	HostIPs []string
	// Allocatable is what resourceFieldRef reports as a container's limit when
	// the container has none.
	Allocatable v1.ResourceList
	// MemoryCapacity and SwapCapacity are the machine's, in bytes.
	MemoryCapacity int64
	SwapCapacity   int64

	// LogDir is the root of the pods' log directories.
	LogDir string

	// ClusterDNS and ClusterDomain are the address of the cluster's DNS and
	// its domain; without ClusterDNS, the ClusterFirst policy falls back to
	// Default, as in kubelet.
	ClusterDNS    []string
	ClusterDomain string
	// HostDNS is the node's own resolver configuration, see [ParseResolvConf].
	HostDNS *runtimeapi.DNSConfig

	// SeccompRoot is the directory that Localhost profiles are relative to.
	SeccompRoot string
	// SeccompDefault makes RuntimeDefault the profile of containers that ask
	// for none (kubelet's --seccomp-default).
	SeccompDefault bool

	// CPUQuotaPeriod is the CFS period; 0 means kubelet's default, 100 ms.
	CPUQuotaPeriod time.Duration
	// NoCPUQuota leaves CPU limits unenforced (kubelet's --cpu-cfs-quota=false).
	NoCPUQuota bool
	// HugePageSizes are the sizes the kernel has, as in "2MB".
	HugePageSizes []string
	// CgroupV2 says that the node has the unified hierarchy; SwapController
	// that its cgroups can limit swap.
	CgroupV2       bool
	SwapController bool
	// LimitedSwap lets burstable pods use swap in proportion to their memory
	// request (cgroup v2 only); otherwise no container may swap.
	LimitedSwap bool
	// GroupOOMKill makes the kernel kill all of a container when one of its
	// processes runs out of memory (cgroup v2 only).
	GroupOOMKill bool
}

// Objects finds the ConfigMaps and Secrets that a container's environment
// refers to. A missing object is an error for which
// k8s.io/apimachinery/pkg/api/errors.IsNotFound is true.
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
}

// ReasonCreateContainerConfig is the waiting reason of a container whose
// configuration can't be made.
const ReasonCreateContainerConfig = "CreateContainerConfigError"

// ConfigError says why a container's configuration can't be made. It is worth
// trying again: the missing object may appear.
type ConfigError struct {
	Container string
	Err       error
}

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// Reason is the container's waiting reason.
func (e *ConfigError) Reason() string { return ReasonCreateContainerConfig }

// describe names a pod in messages as kubelet does.
func describe(pod *v1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}
