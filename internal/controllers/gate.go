package controllers

import (
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/autoscaling"
	"k8s.io/client-go/informers/batch"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/coordination"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/informers/networking"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/rbac"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/tools/cache"
)

// gated are informers that tell nothing before the gate is open. Upstream's
// controllers register their handlers while they are still being made: there,
// no informer runs before all of them are. Here others share the informers and
// have started them, and a handler called too early finds a controller without
// its listers. When it ends before that, what is told is dropped: whoever has
// the informers waits for their handlers.
type gated struct {
	informers.SharedInformerFactory
	gate
}

type gate struct{ open, ended <-chan struct{} }

// pass waits, and tells whether the gate was opened.
func (g gate) pass() bool {
	select {
	case <-g.open:
		return true
	case <-g.ended:
		return false
	}
}

// InformerFor implements informers.SharedInformerFactory.
func (g *gated) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return gatedInformer{g.SharedInformerFactory.InformerFor(obj, newFunc), g.gate}
}

// The groups that controllers watch, by way of the gate.

func (g *gated) Admissionregistration() admissionregistration.Interface {
	return admissionregistration.New(g, "", nil)
}
func (g *gated) Apps() apps.Interface                 { return apps.New(g, "", nil) }
func (g *gated) Autoscaling() autoscaling.Interface   { return autoscaling.New(g, "", nil) }
func (g *gated) Batch() batch.Interface               { return batch.New(g, "", nil) }
func (g *gated) Certificates() certificates.Interface { return certificates.New(g, "", nil) }
func (g *gated) Coordination() coordination.Interface { return coordination.New(g, "", nil) }
func (g *gated) Core() core.Interface                 { return core.New(g, "", nil) }
func (g *gated) Discovery() discovery.Interface       { return discovery.New(g, "", nil) }
func (g *gated) Networking() networking.Interface     { return networking.New(g, "", nil) }
func (g *gated) Policy() policy.Interface             { return policy.New(g, "", nil) }
func (g *gated) Rbac() rbac.Interface                 { return rbac.New(g, "", nil) }
func (g *gated) Storage() storage.Interface           { return storage.New(g, "", nil) }

type gatedInformer struct {
	cache.SharedIndexInformer
	gate
}

// AddEventHandler implements cache.SharedInformer.
func (i gatedInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(gatedHandler{h, i.gate})
}

// AddEventHandlerWithResyncPeriod implements cache.SharedInformer.
func (i gatedInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, resync time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(gatedHandler{h, i.gate}, resync)
}

// AddEventHandlerWithOptions implements cache.SharedInformer.
func (i gatedInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, options cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandlerWithOptions(gatedHandler{h, i.gate}, options)
}

// gatedHandler waits in a goroutine of its own: an informer keeps what its
// handlers haven't taken.
type gatedHandler struct {
	cache.ResourceEventHandler
	gate
}

// OnAdd implements cache.ResourceEventHandler.
func (h gatedHandler) OnAdd(obj any, initial bool) {
	if h.pass() {
		h.ResourceEventHandler.OnAdd(obj, initial)
	}
}

// OnUpdate implements cache.ResourceEventHandler.
func (h gatedHandler) OnUpdate(old, obj any) {
	if h.pass() {
		h.ResourceEventHandler.OnUpdate(old, obj)
	}
}

// OnDelete implements cache.ResourceEventHandler.
func (h gatedHandler) OnDelete(obj any) {
	if h.pass() {
		h.ResourceEventHandler.OnDelete(obj)
	}
}
