package podspec

import (
	"fmt"
	"io"
	"slices"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/resolvconf"
)

// Warning is something the user should know that doesn't keep the pod from
// running: the reason and message of a Warning event.
type Warning struct {
	Reason  string
	Message string
}

// ParseResolvConf reads a resolver configuration in the CRI's words.
func ParseResolvConf(r io.Reader) (*runtimeapi.DNSConfig, error) {
	c, err := resolvconf.Parse(r)
	if err != nil {
		return nil, fmt.Errorf("resolv.conf: %w", err)
	}
	return &runtimeapi.DNSConfig{Servers: c.Servers, Searches: c.Searches, Options: c.Options}, nil
}

// dnsConfig forms the pod's resolver configuration: the base that dnsPolicy
// names, then dnsConfig's additions, then what resolvers can bear.
func dnsConfig(node *Node, pod *v1.Pod) (*runtimeapi.DNSConfig, []Warning) {
	var warnings []Warning
	var dns resolvconf.Config
	host := node.HostDNS
	if host == nil {
		// An empty search list means to a resolver that the host's domain is
		// searched; the root alone turns that off.
		host = &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}, Searches: []string{"."}}
	}
	useHost := func() {
		dns = resolvconf.Config{Servers: host.Servers, Searches: host.Searches, Options: host.Options}
	}
	switch policy := pod.Spec.DNSPolicy; {
	case policy == v1.DNSNone:
	case policy == v1.DNSDefault, policy == v1.DNSClusterFirst && pod.Spec.HostNetwork:
		useHost()
	case len(node.ClusterDNS) == 0:
		useHost()
		// A node without cluster DNS is the ordinary case here, so only a pod
		// that insists is worth a warning.
		if policy == v1.DNSClusterFirstWithHostNet {
			warnings = append(warnings, Warning{"MissingClusterDNS", fmt.Sprintf(
				"pod: %q. the node does not have ClusterDNS IP configured and cannot create Pod using %q policy. Falling back to %q policy.",
				describe(pod), policy, v1.DNSDefault)})
		}
	default:
		dns = resolvconf.Config{
			Servers: node.ClusterDNS, Searches: clusterSearches(node.ClusterDomain, pod.Namespace, host.Searches), Options: []string{"ndots:5"},
		}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		more := resolvconf.Config{Servers: c.Nameservers, Searches: c.Searches}
		for _, o := range c.Options {
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			more.Options = append(more.Options, option)
		}
		dns = dns.Merge(more)
	}
	fits, cut := dns.Limit()
	for _, message := range cut {
		warnings = append(warnings, Warning{"DNSConfigForming", message})
	}
	return &runtimeapi.DNSConfig{Servers: slices.Clone(fits.Servers), Searches: slices.Clone(fits.Searches), Options: slices.Clone(fits.Options)}, warnings
}

func clusterSearches(domain, namespace string, host []string) []string {
	if domain == "" {
		return slices.Clone(host)
	}
	own := resolvconf.Config{Searches: []string{namespace + ".svc." + domain, "svc." + domain, domain}}
	return own.Merge(resolvconf.Config{Searches: host}).Searches
}
