package apiserver

import (
	"fmt"
	"net/http"
	"time"

	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/kubelet/client"
	"k8s.io/kubernetes/pkg/registry/core/componentstatus"
	endpointsstore "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	limitrangestore "k8s.io/kubernetes/pkg/registry/core/limitrange/storage"
	noderest "k8s.io/kubernetes/pkg/registry/core/node/rest"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
	pvstore "k8s.io/kubernetes/pkg/registry/core/persistentvolume/storage"
	pvcstore "k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim/storage"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	podtemplatestore "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	controllerstore "k8s.io/kubernetes/pkg/registry/core/replicationcontroller/storage"
	corerest "k8s.io/kubernetes/pkg/registry/core/rest"
	secretstore "k8s.io/kubernetes/pkg/registry/core/secret/storage"
	servicestore "k8s.io/kubernetes/pkg/registry/core/service/storage"
	serviceaccountstore "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// eventTTL is how long events are kept, upstream's.
const eventTTL = time.Hour

// core is what the core group needs beyond where it is stored.
type core struct {
	config     *genericapiserver.Config
	resources  *serverstorage.ResourceConfig
	factory    serverstorage.StorageFactory
	client     kubernetes.Interface
	tokens     serviceaccount.TokenGenerator
	allocators *serviceAllocators
	slices     proxy.EndpointSliceGetter
	kubelet    client.ConnectionInfoGetter
	proxy      http.RoundTripper

	secrets *genericregistry.Store // after group
}

// group is core/v1. Upstream's own constructor is not usable: its allocator of
// ports lives in etcd.
func (c *core) group() (*genericapiserver.APIGroupInfo, error) {
	getter := c.config.RESTOptionsGetter
	generic := corerest.GenericConfig{
		StorageFactory:       c.factory,
		EventTTL:             eventTTL,
		LoopbackClientConfig: c.config.LoopbackClientConfig,
	}
	info, err := generic.NewRESTStorage(c.resources, getter)
	if err != nil {
		return nil, err
	}
	storage := info.VersionedResourcesStorageMap["v1"]
	add := func(name string, s rest.Storage) { storage[name] = s }

	templates, err := podtemplatestore.NewREST(getter)
	if err != nil {
		return nil, err
	}
	add("podtemplates", templates)
	limits, err := limitrangestore.NewREST(getter)
	if err != nil {
		return nil, err
	}
	add("limitranges", limits)
	pv, pvStatus, err := pvstore.NewREST(getter)
	if err != nil {
		return nil, err
	}
	add("persistentvolumes", pv)
	add("persistentvolumes/status", pvStatus)
	pvc, pvcStatus, err := pvcstore.NewREST(getter)
	if err != nil {
		return nil, err
	}
	add("persistentvolumeclaims", pvc)
	add("persistentvolumeclaims/status", pvcStatus)
	endpoints, err := endpointsstore.NewREST(getter)
	if err != nil {
		return nil, err
	}
	add("endpoints", endpoints)
	rc, err := controllerstore.NewStorage(getter)
	if err != nil {
		return nil, err
	}
	add("replicationcontrollers", rc.Controller)
	add("replicationcontrollers/status", rc.Status)
	add("replicationcontrollers/scale", rc.Scale)
	add("componentstatuses", componentstatus.NewStorage(func() map[string]componentstatus.Server { return nil }))
	if err := c.nodesAndPods(storage); err != nil {
		return nil, err
	}
	return &info, nil
}

func (c *core) nodesAndPods(storage map[string]rest.Storage) error {
	getter, authz := c.config.RESTOptionsGetter, c.config.Authorization.Authorizer
	nodes, err := nodestore.NewStorage(getter, client.KubeletClientConfig{Port: 10250}, c.proxy)
	if err != nil {
		return err
	}
	storage["nodes"], storage["nodes/status"] = nodes.Node, nodes.Status
	storage["nodes/proxy"] = &noderest.ProxyREST{Store: nodes.Node.Store, Connection: c.kubelet, ProxyTransport: c.proxy}

	pods, err := podstore.NewStorage(getter, c.kubelet, c.proxy, c.client.PolicyV1(), authz)
	if err != nil {
		return err
	}
	for name, s := range map[string]rest.Storage{
		"pods": pods.Pod, "pods/status": pods.Status, "pods/log": pods.Log, "pods/exec": pods.Exec, "pods/attach": pods.Attach,
		"pods/portforward": pods.PortForward, "pods/proxy": pods.Proxy, "pods/binding": pods.Binding, "pods/eviction": pods.Eviction,
		"pods/ephemeralcontainers": pods.EphemeralContainers, "pods/resize": pods.Resize, "bindings": pods.LegacyBinding,
	} {
		storage[name] = s
	}

	services, serviceStatus, serviceProxy, err := servicestore.NewREST(getter, c.allocators.primary, c.allocators.ips, c.allocators.ports, c.slices, pods.Pod, c.proxy)
	if err != nil {
		return err
	}
	storage["services"], storage["services/status"], storage["services/proxy"] = services, serviceStatus, serviceProxy

	secrets, ok := storage["secrets"].(*secretstore.REST)
	if !ok {
		return fmt.Errorf("the storage of secrets is a %T", storage["secrets"])
	}
	c.secrets = secrets.Store
	webhooks := c.client.AdmissionregistrationV1()
	accounts, err := serviceaccountstore.NewREST(getter, c.tokens, c.config.Authentication.APIAudiences, authz, 0, pods.Pod.Store, secrets, nodes.Node.Store,
		webhooks.ValidatingWebhookConfigurations(), webhooks.MutatingWebhookConfigurations(), false, 0)
	if err != nil {
		return err
	}
	storage["serviceaccounts"].Destroy() // generic's, which can't make tokens
	storage["serviceaccounts"], storage["serviceaccounts/token"] = accounts, accounts.Token
	return nil
}
