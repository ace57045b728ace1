package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The arguments of CNI's conventions
// (https://www.cni.dev/docs/conventions/#dynamic-plugin-specific-fields).
type (
	cniPort struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	}
	cniBandwidth struct { // bits and bits per second
		IngressRate  uint64 `json:"ingressRate,omitempty"`
		IngressBurst uint64 `json:"ingressBurst,omitempty"`
		EgressRate   uint64 `json:"egressRate,omitempty"`
		EgressBurst  uint64 `json:"egressBurst,omitempty"`
	}
	cniDNS struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
)

// runtimeConf says to CNI plugins what they may want to know of a pod.
func runtimeConf(req Request, netnsPath string) (*libcni.RuntimeConf, error) {
	capabilities := map[string]any{}
	if len(req.Ports) > 0 {
		var ports []cniPort
		for _, p := range req.Ports {
			ip := ""
			if p.HostIP.IsValid() {
				ip = p.HostIP.String()
			}
			ports = append(ports, cniPort{int32(p.HostPort), int32(p.ContainerPort), strings.ToLower(string(p.Protocol)), ip})
		}
		capabilities["portMappings"] = ports
	}
	bandwidth, err := bandwidthOf(req.Annotations)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", req.ID, err)
	}
	if bandwidth != (cniBandwidth{}) {
		capabilities["bandwidth"] = bandwidth
	}
	if len(req.DNS.Servers)+len(req.DNS.Searches)+len(req.DNS.Options) > 0 {
		capabilities["dns"] = cniDNS(req.DNS)
	}
	if req.CgroupParent != "" {
		capabilities["cgroupPath"] = req.CgroupParent
	}
	if len(req.Annotations) > 0 {
		capabilities["io.kubernetes.cri.pod-annotations"] = req.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID: req.ID,
		NetNS:       netnsPath,
		IfName:      podLink,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", req.Namespace},
			{"K8S_POD_NAME", req.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", req.ID},
			{"K8S_POD_UID", req.UID},
		},
		CapabilityArgs: capabilities,
	}, nil
}

// bandwidthOf reads the annotations that limit a pod's traffic, as kubelet's
// network plugins do: quantities of bits per second from 1k to 1P.
func bandwidthOf(annotations map[string]string) (b cniBandwidth, err error) {
	const burst = 1<<32 - 1 // what others ask for, the most tc takes
	low, high := resource.MustParse("1k"), resource.MustParse("1P")
	read := func(key string) (uint64, error) {
		text, ok := annotations[key]
		if !ok {
			return 0, nil
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return 0, fmt.Errorf("annotation %s=%q: %w: %w", key, text, err, errdefs.ErrInvalidArgument)
		}
		if q.Cmp(low) < 0 || q.Cmp(high) > 0 {
			return 0, fmt.Errorf("annotation %s=%q: not between 1k and 1P bits per second: %w", key, text, errdefs.ErrInvalidArgument)
		}
		return uint64(q.Value()), nil
	}
	if b.IngressRate, err = read("kubernetes.io/ingress-bandwidth"); err != nil {
		return b, err
	}
	if b.EgressRate, err = read("kubernetes.io/egress-bandwidth"); err != nil {
		return b, err
	}
	if b.IngressRate > 0 {
		b.IngressBurst = burst
	}
	if b.EgressRate > 0 {
		b.EgressBurst = burst
	}
	return b, nil
}

// attachmentOf reads a plugin's result, which is foreign input, and the link
// it made.
func attachmentOf(result types.Result, ns *os.File) (*Attachment, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	a := &Attachment{DNS: DNS{Servers: r.DNS.Nameservers, Searches: r.DNS.Search, Options: r.DNS.Options}}
	if r.DNS.Domain != "" && len(r.DNS.Search) == 0 {
		a.DNS.Searches = []string{r.DNS.Domain}
	}
	for _, ip := range r.IPs {
		if ip == nil || !ofPod(r, ip) {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, bits := ip.Address.Mask.Size()
		if !ok || bits == 0 {
			return nil, fmt.Errorf("address %q is not one", ip.Address.String())
		}
		p := netip.PrefixFrom(addr.Unmap(), ones)
		if !p.IsValid() {
			return nil, fmt.Errorf("address %q is not one", ip.Address.String())
		}
		a.IPs = append(a.IPs, p)
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			a.Gateways = append(a.Gateways, gw.Unmap())
		}
	}
	if len(a.IPs) == 0 {
		return nil, errors.New("it has no address for the pod's " + podLink)
	}
	return a, describeLink(ns, a)
}

// ofPod tells whether an address is on the pod's interface. One that names no
// interface is.
func ofPod(r *types100.Result, ip *types100.IPConfig) bool {
	if ip.Interface == nil {
		return true
	}
	i := *ip.Interface
	return i >= 0 && i < len(r.Interfaces) && r.Interfaces[i] != nil &&
		r.Interfaces[i].Name == podLink && r.Interfaces[i].Sandbox != ""
}

// describeLink reads from the kernel what results rarely say.
func describeLink(ns *os.File, a *Attachment) error {
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink in the pod: %w", err)
	}
	defer inside.Close()
	link, err := inside.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("looking up %s in the pod: %w", podLink, err)
	}
	a.MAC, a.MTU = link.Attrs().HardwareAddr.String(), link.Attrs().MTU
	if link.Type() != "veth" {
		return nil // no end outside
	}
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer outside.Close()
	if peer, err := outside.LinkByIndex(link.Attrs().ParentIndex); err == nil {
		a.HostVeth, a.HostVethIndex = peer.Attrs().Name, peer.Attrs().Index
	}
	return nil
}
