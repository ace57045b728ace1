package network

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// What resolvers take, as kubelet enforces it
// (k8s.io/kubernetes/pkg/apis/core/validation).
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048 // of the whole line
	maxDomainChars = 253  // longer ones make glibc abort
	maxResolvConf  = 10 << 20
)

// Where the host's resolver is configured. systemd-resolved writes the second
// when the first names only its stub on 127.0.0.53, which pods can't reach.
const (
	resolvConf        = "/etc/resolv.conf"
	resolvedConf      = "/run/systemd/resolve/resolv.conf"
	resolvedStub      = "127.0.0.53"
	resolvedStubProxy = "127.0.0.54"
)

// HostDNS reads the host's resolver configuration as pods can use it.
func HostDNS() (DNS, error) { return hostDNS(resolvConf, resolvedConf) }

func hostDNS(first, behindStub string) (DNS, error) {
	d, err := readResolvConf(first)
	if err != nil {
		return DNS{}, err
	}
	if len(d.Servers) == 0 || slices.ContainsFunc(d.Servers, func(s string) bool {
		return s != resolvedStub && s != resolvedStubProxy
	}) {
		return d, nil
	}
	real, err := readResolvConf(behindStub)
	if errors.Is(err, os.ErrNotExist) {
		return d, nil // something else listens there
	}
	return real, err
}

func readResolvConf(path string) (DNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return DNS{}, fmt.Errorf("reading the host's resolver configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return DNS{}, fmt.Errorf("reading the host's resolver configuration: %w", err)
	}
	d, err := ParseResolvConf(string(text))
	if err != nil {
		return DNS{}, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// ParseResolvConf reads a resolver configuration (resolv.conf(5)) as kubelet
// does: name servers add up, the last search line counts, and so does the last
// word on each option. Lines of other kinds are not for pods.
func ParseResolvConf(text string) (DNS, error) {
	var d DNS
	var errs []error
	for i, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if len(fields) < 2 {
				errs = append(errs, fmt.Errorf("line %d: nameserver without an address", i+1))
				continue
			}
			if _, err := netip.ParseAddr(fields[1]); err != nil {
				errs = append(errs, fmt.Errorf("line %d: nameserver %q is not an IP address", i+1, fields[1]))
				continue
			}
			d.Servers = append(d.Servers, fields[1])
		case "search":
			d.Searches = nil
			for _, domain := range fields[1:] {
				if domain != "." {
					d.Searches = append(d.Searches, strings.TrimSuffix(domain, "."))
				}
			}
		case "options":
			for _, o := range fields[1:] {
				d.Options = setOption(d.Options, o)
			}
		}
	}
	return d, errors.Join(errs...)
}

// setOption adds an option in place of an earlier one of its name.
func setOption(options []string, option string) []string {
	name, _, _ := strings.Cut(option, ":")
	for i, o := range options {
		if n, _, _ := strings.Cut(o, ":"); n == name {
			return append(append(slices.Clone(options[:i]), options[i+1:]...), option)
		}
	}
	return append(options, option)
}

// Merge adds more to d as a pod's dnsConfig is added to its policy's: servers
// and searches that are not there yet behind, options in place of those of
// the same name.
func (d DNS) Merge(more DNS) DNS {
	m := DNS{
		Servers:  unique(slices.Concat(d.Servers, more.Servers)),
		Searches: unique(slices.Concat(d.Searches, more.Searches)),
		Options:  slices.Clone(d.Options),
	}
	for _, o := range more.Options {
		m.Options = setOption(m.Options, o)
	}
	return m
}

func unique(all []string) []string {
	var kept []string
	for _, s := range all {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// Limit leaves out what resolvers would not take and says so, in kubelet's
// words for the event DNSConfigForming.
func (d DNS) Limit() (limited DNS, warnings []string) {
	limited = d
	if len(d.Servers) > maxNameservers {
		limited.Servers = d.Servers[:maxNameservers]
		warnings = append(warnings, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(limited.Servers, " "))
	}
	var kept []string
	for _, s := range d.Searches[:min(len(d.Searches), maxSearches)] {
		if len(s) <= maxDomainChars {
			kept = append(kept, s)
		}
	}
	for len(strings.Join(kept, " ")) > maxSearchChars {
		kept = kept[:len(kept)-1]
	}
	if len(kept) < len(d.Searches) {
		limited.Searches = kept
		warnings = append(warnings, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(kept, " "))
	}
	return limited, warnings
}

// ResolvConf is the text of a pod's /etc/resolv.conf.
func (d DNS) ResolvConf() string {
	var b strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.String()
}
