package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"unipod.dev/unipod/internal/resolvconf"
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
	d, err := resolvconf.Parse(f)
	for _, s := range d.Servers {
		if _, aerr := netip.ParseAddr(s); aerr != nil {
			err = errors.Join(err, fmt.Errorf("nameserver %q is not an IP address", s))
		}
	}
	if err != nil {
		return DNS{}, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}
