package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"unipod.dev/unipod/internal/resolvconf"
)

// Plugin gives pods a network. Network and CNI implement it.
type Plugin interface {
	// Setup connects a pod. It is undone on error. Repeated for the same pod
	// and namespace it returns the attachment there is.
	Setup(context.Context, Request) (*Attachment, error)
	// Teardown disconnects a pod; an unknown one is no error.
	Teardown(ctx context.Context, id string) error
	// Reconcile disconnects every pod not in live and repairs what the
	// others need. To be called after a start, before Setup.
	Reconcile(ctx context.Context, live map[string]bool) error
	// Ready tells why Setup can't work now, if it can't.
	Ready(context.Context) error
	// Loopback brings lo up in a namespace that Setup is not called for.
	Loopback(ns *os.File) error
	// Stats reads the counters of a namespace's interfaces.
	Stats(ns *os.File) ([]InterfaceStats, error)
	// Remove takes the network itself away; no pod may be left.
	Remove(context.Context) error
	// Close releases what the plugin holds; pods keep their network.
	Close() error
}

// Protocol of a port, in the CRI's words.
type Protocol string

// The protocols a host port can have.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// PortMapping sends what reaches a port of the host to a port of a pod.
type PortMapping struct {
	Protocol      Protocol `json:"protocol"` // "" = TCP
	HostPort      uint16   `json:"hostPort"`
	ContainerPort uint16   `json:"containerPort"`
	// HostIP limits the mapping to one address of the host. Unset means
	// every address; 0.0.0.0 every IPv4 and :: every IPv6 address.
	HostIP netip.Addr `json:"hostIP,omitzero"`
}

// Request asks for a pod's network.
type Request struct {
	ID    string   // of the pod sandbox
	Netns *os.File // of the pod
	Ports []PortMapping

	// For CNI plugins, which like to know whom they work for.
	Namespace, Name, UID string
	Annotations          map[string]string
	CgroupParent         string
	DNS                  DNS
}

// DNS is what a resolv.conf says.
type DNS = resolvconf.Config

// idPattern is what may be a file name and part of a link's alias.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func (r *Request) validate() error {
	if !idPattern.MatchString(r.ID) {
		return fmt.Errorf("pod ID %q is not 1 to 128 letters, digits, '_', '.' or '-': %w", r.ID, errdefs.ErrInvalidArgument)
	}
	if r.Netns == nil {
		return fmt.Errorf("pod %s: no network namespace given: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	for i := range r.Ports {
		p := &r.Ports[i]
		if p.Protocol == "" {
			p.Protocol = TCP
		}
		p.Protocol = Protocol(strings.ToUpper(string(p.Protocol)))
		switch p.Protocol {
		case TCP, UDP, SCTP:
		default:
			return fmt.Errorf("pod %s: port %d: protocol %q is not TCP, UDP or SCTP: %w", r.ID, p.HostPort, p.Protocol, errdefs.ErrInvalidArgument)
		}
		if p.HostPort == 0 || p.ContainerPort == 0 {
			return fmt.Errorf("pod %s: host port %d to container port %d: ports go from 1 to 65535: %w", r.ID, p.HostPort, p.ContainerPort, errdefs.ErrInvalidArgument)
		}
		if p.HostIP.Is4In6() {
			p.HostIP = p.HostIP.Unmap()
		}
		if p.HostIP.Zone() != "" || p.HostIP.IsMulticast() {
			return fmt.Errorf("pod %s: host IP %s of port %d: want an address of the host without zone: %w", r.ID, p.HostIP, p.HostPort, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
