package podspec

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	utilsnet "k8s.io/utils/net"
)

// SandboxOptions is what a sandbox depends on beside its pod and the node.
type SandboxOptions struct {
	// Attempt counts the sandboxes of this pod, from 0.
	Attempt uint32
	// CgroupParent is the pod's cgroup as the runtime's driver names it; ""
	// leaves the choice to the runtime.
	CgroupParent string
	// UserNS is the pod's ID mapping; nil unless the pod has hostUsers: false.
	UserNS *runtimeapi.UserNamespace
}

// SandboxConfig makes the configuration of the pod's sandbox. The warnings are
// the messages of kubelet's DNSConfigForming and MissingClusterDNS events.
func SandboxConfig(node *Node, pod *v1.Pod, o SandboxOptions) (*runtimeapi.PodSandboxConfig, []Warning, error) {
	hostname := ""
	if !pod.Spec.HostNetwork {
		name, domain, err := Hostname(pod, node.ClusterDomain)
		if err != nil {
			return nil, nil, err
		}
		if hostname, err = kernelHostname(name, domain, pod.Spec.SetHostnameAsFQDN); err != nil {
			return nil, nil, err
		}
	}
	linux, err := linuxSandbox(node, pod, o)
	if err != nil {
		return nil, nil, err
	}
	dns, warnings := dnsConfig(node, pod)
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name:      pod.Name,
			Namespace: pod.Namespace,
			Uid:       string(pod.UID),
			Attempt:   o.Attempt,
		},
		Hostname:     hostname,
		LogDirectory: LogDirectory(node.LogDir, pod),
		DnsConfig:    dns,
		PortMappings: portMappings(pod),
		Labels:       podLabels(pod),
		Annotations:  maps.Clone(pod.Annotations),
		Linux:        linux,
	}, warnings, nil
}

// LogDirectory is where the runtime writes the logs of the pod's containers,
// below root.
func LogDirectory(root string, pod *v1.Pod) string {
	return filepath.Join(root, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// LogPath is the log file of one run of a container, relative to the pod's
// [LogDirectory].
func LogPath(container string, restartCount int) string {
	return filepath.Join(container, fmt.Sprintf("%d.log", restartCount))
}

func linuxSandbox(node *Node, pod *v1.Pod, o SandboxOptions) (*runtimeapi.LinuxPodSandboxConfig, error) {
	security := &runtimeapi.LinuxSandboxSecurityContext{
		Privileged:       hasPrivilegedContainer(pod),
		NamespaceOptions: namespaces(pod, o.UserNS),
		// The sandbox's own process always runs under the runtime's profile,
		// so that pods may use the least privileged ones.
		Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	sysctls := map[string]string{}
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			sysctls[s.Name] = s.Value
		}
		security.RunAsUser = int64Value(sc.RunAsUser)
		security.RunAsGroup = int64Value(sc.RunAsGroup)
		security.SelinuxOptions = selinuxOptions(sc.SELinuxOptions)
		security.SupplementalGroups = supplementalGroups(sc)
		policy, err := supplementalGroupsPolicy(sc)
		if err != nil {
			return nil, err
		}
		security.SupplementalGroupsPolicy = policy
	}
	return &runtimeapi.LinuxPodSandboxConfig{
		CgroupParent:    o.CgroupParent,
		SecurityContext: security,
		Sysctls:         sysctls,
		Resources:       sandboxResources(node, pod),
		Overhead:        overheadResources(node, pod),
	}, nil
}

// sandboxResources is what the pod as a whole may use. The runtime makes the
// pod's cgroup of it, so a resource is limited only where every container, or
// the pod itself, has a limit: the rule of kubelet's own pod cgroups
// (ResourceConfigForPod in pkg/kubelet/cm). The sum that kubelet tells its
// runtime instead would let one limited container throttle the others.
func sandboxResources(node *Node, pod *v1.Pod) *runtimeapi.LinuxContainerResources {
	opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts)
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		if r := pod.Spec.Resources; r != nil {
			if _, ok := r.Limits[name]; ok {
				continue
			}
		}
		unlimited := func(c v1.Container) bool { q := c.Resources.Limits[name]; return q.IsZero() }
		if slices.ContainsFunc(pod.Spec.Containers, unlimited) || slices.ContainsFunc(pod.Spec.InitContainers, unlimited) {
			delete(limits, name)
		}
	}
	cpu := limits.Cpu()
	if r, ok := requests[v1.ResourceCPU]; ok {
		cpu = &r
	}
	return node.cpuAndMemory(cpu, limits.Cpu(), limits.Memory())
}

// overheadResources treats a RuntimeClass's overhead as both requested and
// limited.
func overheadResources(node *Node, pod *v1.Pod) *runtimeapi.LinuxContainerResources {
	if pod.Spec.Overhead == nil {
		return &runtimeapi.LinuxContainerResources{}
	}
	cpu := pod.Spec.Overhead.Cpu()
	return node.cpuAndMemory(cpu, cpu, pod.Spec.Overhead.Memory())
}

const hostnameMax = 63 // the kernel's 64 less the terminating NUL, as kubelet counts

// Hostname is the pod's short host name and the domain it is in; the domain is
// empty unless the pod has a subdomain.
func Hostname(pod *v1.Pod, clusterDomain string) (hostname, domain string, err error) {
	if o := pod.Spec.HostnameOverride; o != nil {
		if msgs := utilvalidation.IsDNS1123Subdomain(*o); len(msgs) != 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", *o, strings.Join(msgs, ";"))
		}
		hostname, err = truncateHostname(pod.Name, *o)
		return hostname, "", err
	}
	hostname = pod.Name
	if pod.Spec.Hostname != "" {
		if msgs := utilvalidation.IsDNS1123Label(pod.Spec.Hostname); len(msgs) != 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", pod.Spec.Hostname, strings.Join(msgs, ";"))
		}
		hostname = pod.Spec.Hostname
	}
	if hostname, err = truncateHostname(pod.Name, hostname); err != nil {
		return "", "", err
	}
	if pod.Spec.Subdomain != "" {
		if msgs := utilvalidation.IsDNS1123Label(pod.Spec.Subdomain); len(msgs) != 0 {
			return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", pod.Spec.Subdomain, strings.Join(msgs, ";"))
		}
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	return hostname, domain, nil
}

func truncateHostname(podName, hostname string) (string, error) {
	if len(hostname) <= hostnameMax {
		return hostname, nil
	}
	truncated := strings.TrimRight(hostname[:hostnameMax], "-.")
	if truncated == "" {
		return "", fmt.Errorf("hostname for pod %q was invalid: %q", podName, hostname)
	}
	return truncated, nil
}

// kernelHostname is what uname(2) shows in the pod.
func kernelHostname(hostname, domain string, asFQDN *bool) (string, error) {
	const fqdnMax = 64
	if domain == "" || asFQDN == nil || !*asFQDN {
		return hostname, nil
	}
	fqdn := hostname + "." + domain
	if len(fqdn) > fqdnMax {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, fqdnMax, len(fqdn))
	}
	return fqdn, nil
}

// portMappings collects the ports of the app containers and of the restartable
// init containers, since both serve while the pod runs. (kubelet 1.37 forgets
// the latter's host ports.) A port listed twice in a container counts once.
func portMappings(pod *v1.Pod) []*runtimeapi.PortMapping {
	var mappings []*runtimeapi.PortMapping
	add := func(c *v1.Container) {
		seen := map[string]bool{}
		for _, p := range c.Ports {
			family := "any"
			if p.HostIP != "" {
				family = "v4"
				if utilsnet.IsIPv6String(p.HostIP) {
					family = "v6"
				}
			}
			key := p.Name
			if key == "" {
				key = fmt.Sprintf("%s-%s-%s:%d:%d", family, p.Protocol, p.HostIP, p.ContainerPort, p.HostPort)
			}
			if seen[key] {
				continue
			}
			seen[key] = true
			mappings = append(mappings, &runtimeapi.PortMapping{
				Protocol:      runtimeapi.Protocol(runtimeapi.Protocol_value[string(p.Protocol)]),
				ContainerPort: p.ContainerPort,
				HostPort:      p.HostPort,
				HostIp:        p.HostIP,
			})
		}
	}
	for i := range pod.Spec.InitContainers {
		if podutil.IsRestartableInitContainer(&pod.Spec.InitContainers[i]) {
			add(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return mappings
}
