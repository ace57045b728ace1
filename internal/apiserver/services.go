package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	repair "k8s.io/kubernetes/pkg/registry/core/service/ipallocator/controller"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	netutils "k8s.io/utils/net"
)

// serviceAllocators hand out Services' addresses and ports. Addresses are
// upstream's: an IPAddress object for each that is taken, out of the ranges
// that ServiceCIDR objects name. Ports live in memory: what is taken is what
// the stored Services say, read at start.
type serviceAllocators struct {
	primary api.IPFamily
	ips     map[api.IPFamily]ipallocator.Interface
	ports   *portallocator.PortAllocator
}

func familyOf(cidr *net.IPNet) api.IPFamily {
	if netutils.IsIPv6CIDR(cidr) {
		return api.IPv6Protocol
	}
	return api.IPv4Protocol
}

// newServiceAllocators makes them, of use until ctx ends.
func newServiceAllocators(ctx context.Context, client kubernetes.Interface, shared informers.SharedInformerFactory, cidrs []*net.IPNet, ports utilnet.PortRange) (_ *serviceAllocators, err error) {
	if len(cidrs) == 0 || len(cidrs) > 2 {
		return nil, fmt.Errorf("service addresses: %d ranges given: one, or one of each IP family", len(cidrs))
	}
	a := &serviceAllocators{primary: familyOf(cidrs[0]), ips: map[api.IPFamily]ipallocator.Interface{}}
	if len(cidrs) == 2 && familyOf(cidrs[1]) == a.primary {
		return nil, fmt.Errorf("service addresses: two ranges of %s", a.primary)
	}
	if a.ports, err = portallocator.NewInMemory(ports); err != nil {
		return nil, fmt.Errorf("node ports %s: %w", ports.String(), err)
	}
	ranges := promptRanges{shared.Networking().V1().ServiceCIDRs(), ctx.Done()}
	taken := promptAddresses{shared.Networking().V1().IPAddresses(), ctx.Done()}
	for _, cidr := range cidrs {
		// That of all ranges only logs what is wrong with one.
		if _, err := ipallocator.NewIPAllocator(cidr, client.NetworkingV1(), taken); err != nil {
			return nil, fmt.Errorf("service addresses %s: %w", cidr, err)
		}
	}
	for _, cidr := range cidrs {
		family := familyOf(cidr)
		all, err := ipallocator.NewMetaAllocator(client.NetworkingV1(), ranges, taken, family == api.IPv6Protocol, nil)
		if err != nil {
			return nil, fmt.Errorf("service addresses %s: %w", cidr, err)
		}
		context.AfterFunc(ctx, all.Destroy)
		a.ips[family] = all
	}
	return a, nil
}

// Upstream's allocators look every 100 ms whether their informers know what
// there is. These answer when they do.
type (
	promptRanges struct {
		networkinginformers.ServiceCIDRInformer
		stop <-chan struct{}
	}
	promptAddresses struct {
		networkinginformers.IPAddressInformer
		stop <-chan struct{}
	}
	promptInformer struct {
		cache.SharedIndexInformer
		stop <-chan struct{}
	}
)

func (r promptRanges) Informer() cache.SharedIndexInformer {
	return promptInformer{r.ServiceCIDRInformer.Informer(), r.stop}
}

func (a promptAddresses) Informer() cache.SharedIndexInformer {
	return promptInformer{a.IPAddressInformer.Informer(), a.stop}
}

// HasSynced implements cache.SharedInformer.
func (i promptInformer) HasSynced() bool {
	select {
	case <-i.HasSyncedChecker().Done():
	case <-i.stop:
	}
	return i.SharedIndexInformer.HasSynced()
}

// reservePorts takes the node ports that Services have. It must be done before
// any Service is created. A port out of the range is left to who has it; one
// that two have is reported.
func (a *serviceAllocators) reservePorts(services []*corev1.Service) (odd []error) {
	for _, svc := range services {
		seen := map[int]bool{}
		take := func(port int32) {
			if port == 0 || seen[int(port)] { // one port of several protocols is one
				return
			}
			seen[int(port)] = true
			var outside *portallocator.ErrNotInRange
			if err := a.ports.Allocate(int(port)); err != nil && !errors.As(err, &outside) {
				odd = append(odd, fmt.Errorf("service %s/%s: node port %d: %w", svc.Namespace, svc.Name, port, err))
			}
		}
		for _, p := range svc.Spec.Ports {
			take(p.NodePort)
		}
		take(svc.Spec.HealthCheckNodePort)
	}
	return odd
}

// rangesKnown tells whether there is an allocator for each family of the
// ranges.
func (a *serviceAllocators) rangesKnown(ranges *networkingv1.ServiceCIDR) bool {
	for _, cidr := range ranges.Spec.CIDRs {
		_, n, err := net.ParseCIDR(cidr)
		if err != nil {
			continue
		}
		family, ok := a.ips[familyOf(n)].(*ipallocator.MetaAllocator)
		if ok && family.Free()+family.Used() == 0 {
			return false
		}
	}
	return true
}

// makeServiceRange makes the ServiceCIDR that says where Services' addresses
// are, where there is none. Upstream's controller keeps it, see [Server.services].
func (s *Server) makeServiceRange(ctx context.Context, cidrs []*net.IPNet) error {
	const name = defaultservicecidr.DefaultServiceCIDRName
	if _, err := s.shared.Networking().V1().ServiceCIDRs().Lister().Get(name); err == nil {
		return nil
	}
	object := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: texts(cidrs)}}
	_, err := s.client.NetworkingV1().ServiceCIDRs().Create(ctx, object, metav1.CreateOptions{})
	return existsIsFine(err, "ServiceCIDR", name)
}

func texts(cidrs []*net.IPNet) (all []string) {
	for _, n := range cidrs {
		all = append(all, n.String())
	}
	return all
}

const (
	// soon is how often it is looked for what comes within a millisecond or two.
	soon = time.Millisecond
	// soonEnough is how long that is waited for.
	soonEnough = 5 * time.Second
)

// services brings Services' addresses and ports up to date before any is given
// out: those that Services of the store have are taken, IPAddress objects of
// them made where there are none (an earlier version of this program had
// none). Upstream's repair does it, and goes on as long as the server runs.
func (s *Server) services(c Config) error {
	services, err := s.shared.Core().V1().Services().Lister().List(labels.Everything())
	if err != nil {
		return err
	}
	for _, o := range s.allocators.reservePorts(services) {
		s.log.Warn("a Service has what can't be reserved for it", "err", o)
	}
	ranges := s.shared.Networking().V1()
	const name = defaultservicecidr.DefaultServiceCIDRName
	var stored *networkingv1.ServiceCIDR
	known := func(context.Context) (bool, error) {
		stored, err = ranges.ServiceCIDRs().Lister().Get(name)
		return err == nil && s.allocators.rangesKnown(stored), nil
	}
	if err := wait.PollUntilContextTimeout(s.stopping, soon, soonEnough, true, known); err != nil {
		s.log.Warn("Services may get no address for want of a range", "ServiceCIDR", name, "err", err)
	} else if have, want := stored.Spec.CIDRs, texts(c.ServiceCIDRs); !slices.Equal(have, want[:min(len(have), len(want))]) {
		s.log.Warn("Services go on getting addresses of the range that they got when the node was new; another is added as a ServiceCIDR object", "have", have, "asked", want)
	}
	var second net.IPNet
	if len(c.ServiceCIDRs) > 1 {
		second = *c.ServiceCIDRs[1]
	}
	s.group.Go(func() { defaultservicecidr.NewController(*c.ServiceCIDRs[0], second, s.client).Start(s.stopping) })

	early := rest.CopyConfig(s.loopback)
	early.Transport = starting{early.Transport}
	client, err := kubernetes.NewForConfig(early)
	if err != nil {
		return err
	}
	checked, ended, stop := make(chan struct{}), make(chan struct{}), make(chan struct{})
	context.AfterFunc(s.stopping, func() { close(stop) })
	s.group.Go(func() {
		defer close(ended)
		repair.NewRepairIPAddress(0, client, s.shared.Core().V1().Services(), ranges.ServiceCIDRs(), ranges.IPAddresses()).RunUntil(func() { close(checked) }, stop)
	})
	select {
	case <-checked:
	case <-ended:
		if s.stopping.Err() == nil {
			s.log.Error("not every Service's address is marked as taken: another may get it. The node has to be started anew when what is wrong (a full disk?) is mended")
		}
	}
	return nil
}

// starting is the transport of what the API needs to be ready.
type starting struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t starting) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.RoundTripper.RoundTrip(req.WithContext(context.WithValue(req.Context(), startingKey{}, true)))
}
