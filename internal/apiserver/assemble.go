package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"

	"github.com/emicklei/go-restful/v3"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/sets"
	apimachineryversion "k8s.io/apimachinery/pkg/version"
	genericapi "k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/kubelet/client"
	"k8s.io/kubernetes/pkg/routes"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"unipod.dev/unipod/internal/apiserver/metricsapi"
)

// KubernetesVersion is the release whose API this is.
const KubernetesVersion = "v1.37.2"

// assemble makes the server's parts, in the order in which they need each
// other. Nothing of it talks to the API yet.
func (s *Server) assemble(c Config) error {
	config := genericapiserver.NewConfig(legacyscheme.Codecs)
	config.EffectiveVersion = release{compatibility.DefaultBuildEffectiveVersion()}
	config.LoopbackClientConfig = s.loopback
	config.ExternalAddress = externalAddress(c)
	config.BuildHandlerChainFunc = chain
	config.SkipOpenAPIInstallation = true
	config.StorageObjectCountTracker = nil // only priority and fairness counts
	config.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"),
	)
	config.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	config.AddReadyzChecks(until{"start", s.ready}, until{"default-roles", s.rolesMade})
	resources := servedResources()
	config.MergedResourceConfig = resources
	s.config = config
	if err := s.audit(c); err != nil {
		return err
	}

	factory, err := newStorageFactory(resources, config.EffectiveVersion)
	if err != nil {
		return fmt.Errorf("how objects are stored: %w", err)
	}
	transformer, err := c.PKI.Transformer()
	if err != nil {
		return fmt.Errorf("encryption of Secrets: %w", err)
	}
	options := &restOptions{decorator: c.Store.Decorator(), factory: factory, encrypted: map[schema.GroupResource]value.Transformer{{Resource: "secrets"}: transformer}}
	config.RESTOptionsGetter = options

	clientset, err := kubernetes.NewForConfig(s.loopback)
	if err != nil {
		return err
	}
	s.client = clientset
	s.shared = informers.NewSharedInformerFactoryWithOptions(clientset, resync, informers.WithTransform(trim))

	keys, err := accountKeys(c.PKI)
	if err != nil {
		return err
	}
	if config.Authentication, err = authentication(s.stopping, c.PKI, keys, clientset, s.shared); err != nil {
		return err
	}
	if config.Authorization.Authorizer, config.RuleResolver, err = authorization(s.shared); err != nil {
		return err
	}
	transport := proxyTransport()
	slices, err := proxy.NewEndpointSliceIndexerGetter(s.shared.Discovery().V1().EndpointSlices())
	if err != nil {
		return fmt.Errorf("the informer of EndpointSlices: %w", err)
	}
	resolver := serviceResolver{s.shared.Core().V1().Services().Lister(), slices}
	s.admitter = newAdmitter()
	config.AdmissionControl = s.admitter

	missing := genericapiserver.NewEmptyDelegateWithCustomHandler(http.NotFoundHandler())
	if s.crds, err = customResources(*config, options, resolver, missing); err != nil {
		return err
	}
	s.admission = &admissionParts{config: config, resources: resources, shared: s.shared, client: clientset, resolver: resolver, transport: transport,
		crds: s.crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer(), stop: s.stopping.Done()}
	s.admission.informers()
	if s.generic, err = config.Complete(s.shared).New("unipod", s.crds.GenericAPIServer); err != nil {
		return err
	}
	definitions := s.crds.Informers.Apiextensions().V1().CustomResourceDefinitions()
	custom := &customGroups{crds: definitions.Lister(), groups: s.generic.DiscoveryGroupManager}
	if err := custom.watch(definitions.Informer()); err != nil {
		return fmt.Errorf("custom resources: %w", err)
	}
	tokens, err := serviceaccount.JWTTokenGenerator(Issuer, c.PKI.ServiceAccountKey())
	if err != nil {
		return fmt.Errorf("the key of service account tokens: %w", err)
	}
	metadata, err := serviceaccount.NewOpenIDMetadataProvider(Issuer, "", config.ExternalAddress, keys)
	if err != nil {
		return fmt.Errorf("the issuer's description: %w", err)
	}
	routes.NewOpenIDMetadataServer(metadata).Install(s.generic.Handler.GoRestfulContainer)

	if s.allocators, err = newServiceAllocators(s.stopping, clientset, s.shared, c.ServiceCIDRs, c.NodePorts); err != nil {
		return err
	}
	group := &core{config: config, resources: resources, factory: factory, client: clientset, tokens: tokens,
		allocators: s.allocators, slices: slices, kubelet: c.Kubelet, proxy: transport}
	if err := s.installGroups(c, group, clientset); err != nil {
		return err
	}
	s.secrets = group.secrets
	return nil
}

func (s *Server) installGroups(c Config, group *core, clientset *kubernetes.Clientset) error {
	ages, err := genericapiserver.NewResourceExpirationEvaluatorFromOptions(genericapiserver.ResourceExpirationEvaluatorOptions{
		CurrentVersion: s.config.EffectiveVersion.EmulationVersion(),
	})
	if err != nil {
		return err
	}
	models := newOpenAPIModels(legacyscheme.Scheme, apiextensions.Scheme, metricsapi.Scheme)
	routes := &described{s.webServices, map[string]*genericapi.APIGroupVersion{}}
	newOpenAPI(models, routes, s.crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister()).install(s.generic.Handler.NonGoRestfulMux)
	installer := &groupInstaller{
		server: s.generic,
		common: genericapi.APIGroupVersion{
			EquivalentResourceRegistry: s.config.EquivalentResourceRegistry,
			Admit:                      s.config.AdmissionControl,
			MinRequestTimeout:          minWatch,
			Authorizer:                 s.generic.Authorizer,
			MaxRequestBodyBytes:        s.config.MaxRequestBodyBytes,
		},
		models:           models,
		routes:           routes,
		discoveryManager: s.config.AggregatedDiscoveryGroupManager,
		addresses:        discovery.DefaultAddresses{DefaultAddress: s.config.ExternalAddress},
		ages:             ages,
		resources:        group.resources,
		priority:         firstPriority,
	}
	info, err := group.group()
	if err != nil {
		return fmt.Errorf("group core: %w", err)
	}
	if err := installer.install(info); err != nil {
		return err
	}
	for _, p := range providers(clientset, s.config) {
		info, err := p.NewRESTStorage(group.resources, s.config.RESTOptionsGetter)
		if err != nil {
			return fmt.Errorf("group %s: %w", p.GroupName(), err)
		}
		if err := installer.install(&info); err != nil {
			return err
		}
	}
	v1 := metav1.GroupVersionForDiscovery{GroupVersion: apiextensionsv1.SchemeGroupVersion.String(), Version: apiextensionsv1.SchemeGroupVersion.Version}
	installer.rank(metav1.APIGroup{Name: apiextensionsv1.GroupName, Versions: []metav1.GroupVersionForDiscovery{v1}, PreferredVersion: v1})
	usage := metricsapi.Group(c.Metrics)
	installer.priority = metricsPriority
	if err := installer.install(&usage); err != nil {
		return err
	}
	routes.dropDocs()
	dropPatterns(s.generic.Handler.GoRestfulContainer)
	return nil
}

// webServices are those that OpenAPI describes: the main server's, and of the
// custom resources' its own group.
func (s *Server) webServices() []*restful.WebService {
	services := s.generic.Handler.GoRestfulContainer.RegisteredWebServices()
	for _, ws := range s.crds.GenericAPIServer.Handler.GoRestfulContainer.RegisteredWebServices() {
		if strings.HasPrefix(ws.RootPath(), "/apis/"+apiextensionsv1.GroupName) {
			services = append(services, ws)
		}
	}
	return services
}

// externalAddress is what discovery tells clients; it must have a port.
func externalAddress(c Config) string {
	if c.Advertise.IsValid() {
		return c.Advertise.String()
	}
	return "127.0.0.1:6443"
}

// proxyTransport reaches pods and Services, which are addresses without names
// that a certificate could be verified by, as upstream's.
func proxyTransport() *http.Transport {
	return utilnet.SetTransportDefaults(&http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}) //nolint:gosec // see above
}

// noKubelet is the connection of a server without a node.
type noKubelet struct{}

func (noKubelet) GetConnectionInfo(_ context.Context, node types.NodeName) (*client.ConnectionInfo, error) {
	return nil, apierrors.NewServiceUnavailable("node " + string(node) + ": this API server has no connection to it")
}

// release is what /version says: the release whose code this is, which the
// build can't know without linker flags.
type release struct {
	basecompatibility.EffectiveVersion
}

func (r release) Info() *apimachineryversion.Info {
	info := r.EffectiveVersion.Info()
	info.GitVersion, info.GitTreeState = KubernetesVersion+"+unipod", ""
	info.GitCommit, info.BuildDate = "", ""
	return info
}
