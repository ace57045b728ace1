package podspec

import (
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// Warning is something the user should know that doesn't keep the pod from
// running: the reason and message of a Warning event.
type Warning struct {
	Reason  string
	Message string
}

// maxResolvConf bounds what is read of a resolv.conf, in bytes.
const maxResolvConf = 10 << 20

// ParseResolvConf reads a resolver configuration as kubelet does: name servers
// accumulate, the last search line wins, a repeated option replaces the former.
func ParseResolvConf(r io.Reader) (*runtimeapi.DNSConfig, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxResolvConf+1))
	if err != nil {
		return nil, fmt.Errorf("reading resolv.conf: %w", err)
	}
	if len(text) > maxResolvConf {
		return nil, fmt.Errorf("resolv.conf is larger than %d bytes", maxResolvConf)
	}
	dns := &runtimeapi.DNSConfig{}
	for n, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if len(fields) < 2 {
				return nil, fmt.Errorf("resolv.conf line %d: nameserver list is empty", n+1)
			}
			dns.Servers = append(dns.Servers, fields[1])
		case "search":
			dns.Searches = nil
			for _, s := range fields[1:] {
				// The same domain with and without its final dot counts once.
				if s = strings.TrimSuffix(s, "."); s != "" && s != "." {
					dns.Searches = append(dns.Searches, s)
				}
			}
		case "options":
			for _, o := range fields[1:] {
				dns.Options = setOption(dns.Options, o)
			}
		}
	}
	return dns, nil
}

// dnsConfig forms the pod's resolver configuration: the base that dnsPolicy
// names, then dnsConfig's additions, then what resolvers can bear.
func dnsConfig(node *Node, pod *v1.Pod) (*runtimeapi.DNSConfig, []Warning) {
	var warnings []Warning
	dns := &runtimeapi.DNSConfig{}
	host := node.HostDNS
	if host == nil {
		// An empty search list means to a resolver that the host's domain is
		// searched; the root alone turns that off.
		host = &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}, Searches: []string{"."}}
	}
	useHost := func() {
		dns.Servers, dns.Searches, dns.Options = slices.Clone(host.Servers), slices.Clone(host.Searches), slices.Clone(host.Options)
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
		dns.Servers = slices.Clone(node.ClusterDNS)
		dns.Searches = clusterSearches(node.ClusterDomain, pod.Namespace, host.Searches)
		dns.Options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		dns.Servers = unique(append(dns.Servers, c.Nameservers...))
		dns.Searches = unique(append(dns.Searches, c.Searches...))
		for _, o := range c.Options {
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			dns.Options = setOption(dns.Options, option)
		}
	}
	return dns, append(warnings, fitDNS(dns)...)
}

func clusterSearches(domain, namespace string, host []string) []string {
	if domain == "" {
		return slices.Clone(host)
	}
	return unique(append([]string{namespace + ".svc." + domain, "svc." + domain, domain}, host...))
}

// fitDNS cuts the configuration to the limits of common resolvers.
func fitDNS(dns *runtimeapi.DNSConfig) []Warning {
	var warnings []Warning
	warn := func(format string, args ...any) {
		warnings = append(warnings, Warning{"DNSConfigForming", fmt.Sprintf(format, args...)})
	}
	if len(dns.Servers) > validation.MaxDNSNameservers {
		dns.Servers = dns.Servers[:validation.MaxDNSNameservers]
		warn("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: %s", strings.Join(dns.Servers, " "))
	}
	before := len(dns.Searches)
	if before > validation.MaxDNSSearchPaths {
		dns.Searches = dns.Searches[:validation.MaxDNSSearchPaths]
	}
	// glibc aborts on a search path longer than a name can be.
	dns.Searches = slices.DeleteFunc(dns.Searches, func(s string) bool {
		return len(s) > utilvalidation.DNS1123SubdomainMaxLength
	})
	for len(strings.Join(dns.Searches, " ")) > validation.MaxDNSSearchListChars {
		dns.Searches = dns.Searches[:len(dns.Searches)-1]
	}
	if len(dns.Searches) != before {
		warn("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: %s", strings.Join(dns.Searches, " "))
	}
	return warnings
}

// setOption adds a resolver option ("name" or "name:value"), replacing one of
// the same name.
func setOption(options []string, option string) []string {
	name, _, _ := strings.Cut(option, ":")
	i := slices.IndexFunc(options, func(o string) bool {
		n, _, _ := strings.Cut(o, ":")
		return n == name
	})
	if i < 0 {
		return append(options, option)
	}
	options[i] = option
	return options
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
