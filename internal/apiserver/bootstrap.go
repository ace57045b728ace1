package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	schedulingapiv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

const (
	// kubernetesService is the API's own Service, in the namespace default.
	kubernetesService = "kubernetes"
	// retryLater is how long what could not be made is left before it is tried again.
	retryLater = time.Second
)

var systemNamespaces = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}

// firstObjects makes what everything else is made in or of: the system
// namespaces, the priority classes of system pods, and the range of Services'
// addresses. What is there is left alone.
func (s *Server) firstObjects(c Config) error {
	ctx := context.WithValue(s.stopping, startingKey{}, true)
	var group errgroup.Group
	namespaces := s.shared.Core().V1().Namespaces().Lister()
	for _, name := range systemNamespaces {
		if _, err := namespaces.Get(name); err == nil {
			continue
		}
		group.Go(func() error {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
			_, err := s.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
			return existsIsFine(err, "namespace", name)
		})
	}
	classes := s.shared.Scheduling().V1().PriorityClasses().Lister()
	for _, class := range schedulingapiv1.SystemPriorityClasses() {
		if _, err := classes.Get(class.Name); err == nil {
			continue
		}
		group.Go(func() error {
			_, err := s.client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{})
			return existsIsFine(err, "priority class", class.Name)
		})
	}
	group.Go(func() error { return s.makeServiceRange(ctx, c.ServiceCIDRs) })
	return group.Wait()
}

func existsIsFine(err error, kind, name string) error {
	if err == nil || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("%s %s: %w", kind, name, err)
}

// laterObjects makes what the API must have but needs not to be ready. What
// fails is tried again until the server ends.
func (s *Server) laterObjects(c Config) {
	for _, o := range []struct {
		what string
		make func() error
	}{
		{"the Service default/kubernetes", func() error { return s.ownService(c) }},
		{"the default roles", func() error {
			if err := s.defaultRoles(); err != nil {
				return err
			}
			close(s.rolesMade)
			return nil
		}},
	} {
		s.group.Go(func() { s.insist(o.what, o.make) })
	}
	s.group.Go(func() {
		for s.stopping.Err() == nil {
			renewed := c.PKI.Renewed()
			s.insist("the ConfigMap "+metav1.NamespaceSystem+"/"+trustMap, func() error { return s.trust(c.PKI.CABundlePEM()) })
			select {
			case <-renewed:
			case <-s.stopping.Done():
			}
		}
	})
}

// insist does something until it succeeds or the server ends.
func (s *Server) insist(what string, do func() error) {
	for {
		err := do()
		if err == nil || s.stopping.Err() != nil {
			return
		}
		s.log.Error("the API server can't make what it needs; trying again", "what", what, "err", err)
		select {
		case <-s.stopping.Done():
			return
		case <-time.After(retryLater):
		}
	}
}

// ownService is how pods reach the API by name.
func (s *Server) ownService(c Config) error {
	services := s.client.CoreV1().Services(metav1.NamespaceDefault)
	_, err := services.Get(s.stopping, kubernetesService, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		ip, err := firstAddress(c.ServiceCIDRs[0])
		if err != nil {
			return err
		}
		single := corev1.IPFamilyPolicySingleStack
		_, err = services.Create(s.stopping, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: kubernetesService, Labels: map[string]string{"provider": "kubernetes", "component": "apiserver"}},
			Spec: corev1.ServiceSpec{
				ClusterIP:       ip.String(),
				IPFamilyPolicy:  &single,
				SessionAffinity: corev1.ServiceAffinityNone,
				Type:            corev1.ServiceTypeClusterIP,
				Ports:           []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(int32(c.Advertise.Port()))}},
			},
		}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	} else if err != nil {
		return err
	}
	if !c.Advertise.IsValid() || c.Advertise.Addr().IsLoopback() {
		return s.noEndpoint()
	}
	adapter := reconcilers.NewEndpointsAdapter(s.client.CoreV1(), s.client.DiscoveryV1())
	ports := []corev1.EndpointPort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: int32(c.Advertise.Port())}}
	return reconcilers.NewMasterCountEndpointReconciler(1, adapter).ReconcileEndpoints(kubernetesService, net.IP(c.Advertise.Addr().AsSlice()), ports, true)
}

// noEndpoint takes away what an earlier start may have left: an address that
// nobody answers at.
func (s *Server) noEndpoint() error {
	for what, err := range map[string]error{
		"the EndpointSlice": s.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Delete(s.stopping, kubernetesService, metav1.DeleteOptions{}),
		"the Endpoints":     s.client.CoreV1().Endpoints(metav1.NamespaceDefault).Delete(s.stopping, kubernetesService, metav1.DeleteOptions{}),
	} {
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s default/%s: %w", what, kubernetesService, err)
		}
	}
	return nil
}

// trustMap is where servers that extend the API read by what authority its
// clients are verified, upstream's name.
const trustMap = "extension-apiserver-authentication"

func (s *Server) trust(ca []byte) error {
	want := map[string]string{"client-ca-file": string(ca)}
	client := s.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	have, err := client.Get(s.stopping, trustMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = client.Create(s.stopping, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: trustMap}, Data: want}, metav1.CreateOptions{})
		return err
	}
	if err != nil || maps.Equal(have.Data, want) {
		return err
	}
	have.Data = want
	_, err = client.Update(s.stopping, have, metav1.UpdateOptions{})
	return err
}

// firstAddress is what upstream gives the Service default/kubernetes.
func firstAddress(cidr *net.IPNet) (netip.Addr, error) {
	base, ok := netip.AddrFromSlice(cidr.IP)
	if !ok {
		return netip.Addr{}, errors.New("service addresses: " + cidr.String() + " is no range")
	}
	first := base.Unmap().Next()
	if !cidr.Contains(first.AsSlice()) {
		return netip.Addr{}, fmt.Errorf("service addresses: %s has room for none", cidr)
	}
	return first, nil
}
