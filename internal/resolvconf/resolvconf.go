// Package resolvconf reads and writes resolver configurations: resolv.conf(5)
// as kubelet takes it from a host and as pods get it.
//
// It owns nothing and is pure. Text it reads is foreign: what it takes is
// bounded, and what it writes of it reads as what was meant.
//
// Floor 0: both halves of the house need it, the runtime for pods that name no
// resolver and the translation of Pods for those that do.
package resolvconf

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// What resolvers take, as kubelet enforces it
// (k8s.io/kubernetes/pkg/apis/core/validation).
const (
	maxServers     = 3
	maxSearches    = 32
	maxSearchChars = 2048 // of the whole line
	maxDomainChars = 253  // longer ones make glibc abort
)

// MaxSize bounds a resolv.conf, in bytes.
const MaxSize = 10 << 20

// Config is a resolver configuration.
type Config struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"` // "name" or "name:value"
}

// Parse reads a configuration as kubelet does: name servers add up, the last
// search line counts, and so does the last word on each option. Lines of other
// kinds are not for pods. An error names every line that is wrong.
func Parse(r io.Reader) (Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	switch {
	case err != nil:
		return Config{}, err
	case len(text) > MaxSize:
		return Config{}, fmt.Errorf("it is larger than %d bytes", MaxSize)
	}
	var c Config
	var errs []error
	for i, line := range strings.Split(string(text), "\n") {
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
			c.Servers = append(c.Servers, fields[1])
		case "search":
			c.Searches = nil
			for _, domain := range fields[1:] {
				// The same domain with and without its final dot counts once.
				if domain = strings.TrimSuffix(domain, "."); domain != "" && domain != "." {
					c.Searches = append(c.Searches, domain)
				}
			}
		case "options":
			for _, o := range fields[1:] {
				c.Options = setOption(c.Options, o)
			}
		}
	}
	return c, errors.Join(errs...)
}

// setOption adds an option, in place of an earlier one of its name.
func setOption(options []string, option string) []string {
	name, _, _ := strings.Cut(option, ":")
	for i, o := range options {
		if n, _, _ := strings.Cut(o, ":"); n == name {
			options = slices.Clone(options)
			options[i] = option
			return options
		}
	}
	return append(options, option)
}

// Merge adds more to c as a pod's dnsConfig is added to its policy's: servers
// and searches that are not there yet behind, options in place of those of
// the same name. Neither is changed.
func (c Config) Merge(more Config) Config {
	m := Config{
		Servers:  unique(slices.Concat(c.Servers, more.Servers)),
		Searches: unique(slices.Concat(c.Searches, more.Searches)),
		Options:  slices.Clone(c.Options),
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
func (c Config) Limit() (limited Config, warnings []string) {
	limited = c
	if len(c.Servers) > maxServers {
		limited.Servers = c.Servers[:maxServers]
		warnings = append(warnings, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(limited.Servers, " "))
	}
	var kept []string
	for _, s := range c.Searches[:min(len(c.Searches), maxSearches)] {
		if len(s) <= maxDomainChars {
			kept = append(kept, s)
		}
	}
	for len(strings.Join(kept, " ")) > maxSearchChars {
		kept = kept[:len(kept)-1]
	}
	if len(kept) < len(c.Searches) {
		limited.Searches = kept
		warnings = append(warnings, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(kept, " "))
	}
	return limited, warnings
}

// String is the text of a resolv.conf.
func (c Config) String() string {
	var b strings.Builder
	if len(c.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
	}
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.String()
}
