package apiserver

import (
	"fmt"
	"path"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapi "k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	admissionregistrationrest "k8s.io/kubernetes/pkg/registry/admissionregistration/rest"
	appsrest "k8s.io/kubernetes/pkg/registry/apps/rest"
	authenticationrest "k8s.io/kubernetes/pkg/registry/authentication/rest"
	authorizationrest "k8s.io/kubernetes/pkg/registry/authorization/rest"
	autoscalingrest "k8s.io/kubernetes/pkg/registry/autoscaling/rest"
	batchrest "k8s.io/kubernetes/pkg/registry/batch/rest"
	certificatesrest "k8s.io/kubernetes/pkg/registry/certificates/rest"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"
	discoveryrest "k8s.io/kubernetes/pkg/registry/discovery/rest"
	eventsrest "k8s.io/kubernetes/pkg/registry/events/rest"
	networkingrest "k8s.io/kubernetes/pkg/registry/networking/rest"
	noderest "k8s.io/kubernetes/pkg/registry/node/rest"
	policyrest "k8s.io/kubernetes/pkg/registry/policy/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	resourcerest "k8s.io/kubernetes/pkg/registry/resource/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	storagerest "k8s.io/kubernetes/pkg/registry/storage/rest"
)

// servedResources are upstream's defaults, less what only a cluster of several
// API servers has a use for: priority and fairness, and storage migration.
func servedResources() *serverstorage.ResourceConfig {
	c := controlplane.DefaultAPIResourceConfigSource()
	c.DisableVersions(
		schema.GroupVersion{Group: "flowcontrol.apiserver.k8s.io", Version: "v1"},
		schema.GroupVersion{Group: "storagemigration.k8s.io", Version: "v1"},
	)
	return c
}

// providers are upstream's groups, in the order in which an unqualified name
// is looked for.
func providers(client *kubernetes.Clientset, config *genericapiserver.Config) []controlplaneapiserver.RESTStorageProvider {
	authz := config.Authorization.Authorizer
	return []controlplaneapiserver.RESTStorageProvider{
		appsrest.StorageProvider{},
		eventsrest.RESTStorageProvider{TTL: eventTTL},
		authenticationrest.RESTStorageProvider{Authenticator: config.Authentication.Authenticator, APIAudiences: config.Authentication.APIAudiences},
		authorizationrest.RESTStorageProvider{Authorizer: authz, RuleResolver: config.RuleResolver},
		autoscalingrest.RESTStorageProvider{},
		batchrest.RESTStorageProvider{},
		certificatesrest.RESTStorageProvider{Authorizer: authz},
		networkingrest.RESTStorageProvider{},
		policyrest.RESTStorageProvider{},
		rbacrest.RESTStorageProvider{Authorizer: authz},
		storagerest.RESTStorageProvider{},
		admissionregistrationrest.RESTStorageProvider{Authorizer: authz, DiscoveryClient: client.Discovery()},
		schedulingrest.RESTStorageProvider{},
		coordinationrest.RESTStorageProvider{},
		noderest.RESTStorageProvider{},
		discoveryrest.StorageProvider{},
		resourcerest.RESTStorageProvider{NamespaceClient: client.CoreV1().Namespaces(), Authorizer: authz},
	}
}

// groupInstaller does what upstream's InstallAPIGroups does, without building
// the schema of everything at start.
type groupInstaller struct {
	server           *genericapiserver.GenericAPIServer
	common           genericapi.APIGroupVersion // the fields all have in common
	models           *openAPIModels
	routes           *described
	tables           sharedTables
	discoveryManager aggregated.ResourceManager
	addresses        discovery.Addresses
	ages             genericapiserver.ResourceExpirationEvaluator
	resources        *serverstorage.ResourceConfig
	// priority is that of the next group: which a name is of that several
	// groups have. Custom resources have 1000.
	priority int
}

const (
	firstPriority   = 17900 // upstream's, of what comes after core
	metricsPriority = 100   // that of the server metrics.k8s.io usually has
	bestVersion     = 15
)

// rank lists a group with its versions, after those that were listed before.
func (g *groupInstaller) rank(api metav1.APIGroup) {
	for i, v := range api.Versions {
		g.discoveryManager.SetGroupVersionPriority(metav1.GroupVersion{Group: api.Name, Version: v.Version}, g.priority, bestVersion-i)
	}
	g.priority -= 100
	g.server.DiscoveryGroupManager.AddGroup(api)
}

func (g *groupInstaller) install(info *genericapiserver.APIGroupInfo) error {
	group := info.PrioritizedVersions[0].Group
	if err := g.ages.RemoveUnavailableKinds(group, info.Scheme, info.VersionedResourcesStorageMap, g.resources); err != nil {
		return err
	}
	prefix, discover := genericapiserver.APIGroupPrefix, g.discoveryManager
	if group == "" {
		prefix, discover = genericapiserver.DefaultLegacyAPIPrefix, g.server.AggregatedLegacyDiscoveryGroupManager
	}
	converter := newTypeConverter(info.Scheme, g.models)
	var served []metav1.GroupVersionForDiscovery
	for _, gv := range info.PrioritizedVersions {
		storage := info.VersionedResourcesStorageMap[gv.Version]
		if len(storage) == 0 {
			continue
		}
		for _, s := range storage {
			g.tables.share(s)
		}
		v := g.version(info, gv)
		v.Root, v.Storage, v.TypeConverter = prefix, storage, converter
		if info.OptionsExternalVersion != nil {
			v.OptionsExternalVersion = info.OptionsExternalVersion
		}
		resources, _, err := v.InstallREST(g.server.Handler.GoRestfulContainer)
		if err != nil {
			return fmt.Errorf("installing %s: %w", gv, err)
		}
		g.routes.versions[strings.Trim(path.Join(v.Root, gv.Group, gv.Version), "/")] = v
		discover.AddGroupVersion(gv.Group, apidiscoveryv2.APIVersionDiscovery{
			Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
			Version:   gv.Version,
			Resources: resources,
		})
		served = append(served, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})
	}
	if len(served) == 0 {
		return nil
	}
	container := g.server.Handler.GoRestfulContainer
	if group == "" {
		root := discovery.NewLegacyRootAPIHandler(g.addresses, g.server.Serializer, prefix)
		m := g.server.AggregatedLegacyDiscoveryGroupManager
		container.Add(aggregated.WrapAggregatedDiscoveryToHandler(root, m, m).GenerateWebService(prefix, metav1.APIVersions{}))
		return nil
	}
	api := metav1.APIGroup{Name: group, Versions: served, PreferredVersion: served[0]}
	g.rank(api)
	container.Add(discovery.NewAPIGroupHandler(g.server.Serializer, api).WebService())
	return nil
}

func (g *groupInstaller) version(info *genericapiserver.APIGroupInfo, gv schema.GroupVersion) *genericapi.APIGroupVersion {
	versions := map[string][]string{}
	for version, storage := range info.VersionedResourcesStorageMap {
		for resource := range storage {
			versions[resource] = append(versions[resource], schema.GroupVersion{Group: gv.Group, Version: version}.String())
		}
	}
	v := g.common
	v.GroupVersion, v.AllServedVersionsByResource, v.MetaGroupVersion = gv, versions, info.MetaGroupVersion
	v.ParameterCodec, v.Serializer = info.ParameterCodec, info.NegotiatedSerializer
	v.Creater, v.Convertor, v.ConvertabilityChecker = info.Scheme, info.Scheme, info.Scheme
	v.UnsafeConvertor = runtime.UnsafeObjectConvertor(info.Scheme)
	v.Defaulter, v.Typer = info.Scheme, info.Scheme
	v.Namer = runtime.Namer(meta.NewAccessor())
	return &v
}
