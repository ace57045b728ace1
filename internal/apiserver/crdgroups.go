package apiserver

import (
	"slices"
	"strings"
	"sync"

	apiextensionshelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdlisters "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/client-go/tools/cache"
)

// customGroups keeps the groups of custom resources in the list of groups that
// clients older than aggregated discovery read. With upstream that list is the
// aggregator's, out of APIService objects.
type customGroups struct {
	crds   crdlisters.CustomResourceDefinitionLister
	groups discovery.GroupManager

	mu     sync.Mutex
	listed map[string]bool
}

func (g *customGroups) watch(informer cache.SharedIndexInformer) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { g.sync() },
		UpdateFunc: func(any, any) { g.sync() },
		DeleteFunc: func(any) { g.sync() },
	})
	return err
}

func (g *customGroups) sync() {
	g.mu.Lock()
	defer g.mu.Unlock()
	crds, err := g.crds.List(labels.Everything())
	if err != nil { // a lister of memory doesn't fail
		return
	}
	now := customGroupList(crds)
	for name := range g.listed {
		if _, ok := now[name]; !ok {
			g.groups.RemoveGroup(name)
		}
	}
	g.listed = map[string]bool{}
	for name, group := range now {
		g.listed[name] = true
		g.groups.AddGroup(group)
	}
}

// customGroupList is the groups that definitions serve, each with its versions
// by upstream's order: the most stable and newest first.
func customGroupList(crds []*apiextensionsv1.CustomResourceDefinition) map[string]metav1.APIGroup {
	versions := map[string][]string{}
	for _, crd := range crds {
		if !apiextensionshelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Served && !slices.Contains(versions[crd.Spec.Group], v.Name) {
				versions[crd.Spec.Group] = append(versions[crd.Spec.Group], v.Name)
			}
		}
	}
	groups := map[string]metav1.APIGroup{}
	for name, vs := range versions {
		slices.SortFunc(vs, func(a, b string) int {
			if c := version.CompareKubeAwareVersionStrings(b, a); c != 0 {
				return c
			}
			return strings.Compare(a, b)
		})
		group := metav1.APIGroup{Name: name}
		for _, v := range vs {
			group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v, Version: v})
		}
		group.PreferredVersion = group.Versions[0]
		groups[name] = group
	}
	return groups
}
