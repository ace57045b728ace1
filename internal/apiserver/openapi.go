package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emicklei/go-restful/v3"
	apiextensionshelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdlisters "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	crdbuilder "k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	openapiwithoutdisabledfeatures "k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
)

// modelsKept is how long the descriptions of every kind, 6.5 MB and 15 ms of
// work, are kept after somebody needed them: needs come together.
const modelsKept = 3 * time.Second

// openAPIModels are the descriptions of every kind, made when asked for.
type openAPIModels struct {
	namer *openapi.DefinitionNamer

	using  sync.Mutex // upstream's builders write into what they are given
	mu     sync.Mutex
	config *openapicommon.OpenAPIV3Config // nil when nobody needed it lately
	forget *time.Timer
}

func newOpenAPIModels(schemes ...*runtime.Scheme) *openAPIModels {
	return &openAPIModels{namer: openapi.NewDefinitionNamer(schemes...)}
}

func (m *openAPIModels) definitions() openapicommon.GetOpenAPIDefinitions {
	return openapiwithoutdisabledfeatures.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
}

// v3 is for one at a time: what is built shares memory with it, and must not be
// read after done was called.
func (m *openAPIModels) v3() (config *openapicommon.OpenAPIV3Config, done func()) {
	m.using.Lock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.config == nil {
		m.config = genericapiserver.DefaultOpenAPIV3Config(m.definitions(), m.namer)
		m.config.Info.Title, m.config.Info.Version = "Kubernetes", KubernetesVersion
	}
	if m.forget == nil {
		m.forget = time.AfterFunc(modelsKept, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.config = nil
		})
	} else {
		m.forget.Reset(modelsKept)
	}
	return m.config, m.using.Unlock
}

func (m *openAPIModels) v2() *openapicommon.Config {
	c := genericapiserver.DefaultOpenAPIConfig(m.definitions(), m.namer)
	c.Info.Title, c.Info.Version = "Kubernetes", KubernetesVersion
	return c
}

// openAPI describes what is served. A document is built when it is asked for
// and kept compressed until what it describes has changed: hashes are made of
// what a document depends on, so that the index costs nothing.
type openAPI struct {
	models   *openAPIModels
	services *described
	crds     crdlisters.CustomResourceDefinitionLister
	build    string // which program this is

	mu   sync.Mutex // held while building: one at a time is memory enough
	kept map[documentKey]document
}

// documentKey names a document: a path of OpenAPI v3, or "" for the one of v2.
type documentKey struct {
	path     string
	protobuf bool
}

type document struct {
	hash string
	gzip []byte
}

func newOpenAPI(models *openAPIModels, services *described, crds crdlisters.CustomResourceDefinitionLister) *openAPI {
	build := KubernetesVersion
	if info, ok := debug.ReadBuildInfo(); ok {
		build += info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" || s.Key == "vcs.modified" || s.Key == "vcs.time" {
				build += s.Value
			}
		}
	}
	return &openAPI{models: models, services: services, crds: crds, build: build, kept: map[documentKey]document{}}
}

// inventory is what there is to describe.
type inventory struct {
	hashes map[string]string // by path
	crds   map[string][]*apiextensionsv1.CustomResourceDefinition
}

func (o *openAPI) inventory() (*inventory, error) {
	inv := &inventory{hashes: map[string]string{}, crds: map[string][]*apiextensionsv1.CustomResourceDefinition{}}
	for _, path := range o.services.paths() {
		inv.hashes[path] = digest(o.build, path)
	}
	crds, err := o.crds.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	slices.SortFunc(crds, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	for _, crd := range crds {
		if !apiextensionshelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Served {
				path := "apis/" + crd.Spec.Group + "/" + v.Name
				inv.crds[path] = append(inv.crds[path], crd)
				inv.hashes[path] = digest(inv.hashes[path], o.build, string(crd.UID), crd.ResourceVersion)
			}
		}
	}
	return inv, nil
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		io.WriteString(h, p) //nolint:errcheck // a hash doesn't fail
		h.Write([]byte{0})
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

// all is the hash of everything.
func (inv *inventory) all() string {
	paths := make([]string, 0, 2*len(inv.hashes))
	for p, h := range inv.hashes {
		paths = append(paths, p+" "+h)
	}
	slices.Sort(paths)
	return digest(paths...)
}

// document is one as it would be sent, compressed.
func (o *openAPI) document(inv *inventory, path, hash string, protobuf bool) (document, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := documentKey{path, protobuf}
	if d, ok := o.kept[key]; ok && d.hash == hash {
		return d, nil
	}
	text, err := o.text(inv, path)
	if err != nil {
		return document{}, err
	}
	if protobuf {
		encode := handler3.ToV3ProtoBinary
		if path == "" {
			encode = handler.ToProtoBinary
		}
		if text, err = encode(text); err != nil {
			return document{}, fmt.Errorf("the description of /%s in protobuf: %w", path, err)
		}
	}
	d := document{hash: hash, gzip: compress(text)}
	for k := range o.kept {
		if _, ok := inv.hashes[k.path]; !ok && k.path != "" { // a definition that is gone
			delete(o.kept, k)
		}
	}
	o.kept[key] = d
	return d, nil
}

func (o *openAPI) text(inv *inventory, path string) ([]byte, error) {
	if path == "" {
		swagger, err := o.swagger(inv)
		if err != nil {
			return nil, fmt.Errorf("the description of the API (v2): %w", err)
		}
		return json.Marshal(swagger)
	}
	doc, done, err := o.groupVersion(inv, path)
	defer done()
	if err != nil {
		return nil, fmt.Errorf("the description of /%s: %w", path, err)
	}
	return json.Marshal(doc)
}

// groupVersion describes a group version; done is called when the description
// isn't needed any more.
func (o *openAPI) groupVersion(inv *inventory, path string) (doc *spec3.OpenAPI, done func(), err error) {
	ws, err := o.services.service(path)
	if err != nil {
		return nil, func() {}, err
	}
	if ws != nil {
		config, done := o.models.v3()
		doc, err = builder3.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices([]*restful.WebService{ws}), config)
		return doc, done, err
	}
	done = func() {}
	version := path[strings.LastIndex(path, "/")+1:]
	var docs []*spec3.OpenAPI
	for _, crd := range inv.crds[path] {
		doc, err := crdbuilder.BuildOpenAPIV3(crd, version, crdbuilder.Options{})
		if err != nil {
			return nil, done, fmt.Errorf("%s: %w", crd.Name, err)
		}
		docs = append(docs, doc)
	}
	doc, err = crdbuilder.MergeSpecsV3(docs...)
	return doc, done, err
}

func (o *openAPI) swagger(inv *inventory) (*spec.Swagger, error) {
	var services []*restful.WebService
	for _, path := range o.services.paths() {
		ws, err := o.services.service(path)
		if err != nil {
			return nil, err
		}
		services = append(services, ws)
	}
	static, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services), o.models.v2())
	if err != nil {
		return nil, err
	}
	static.Definitions = handler.PruneDefaults(static.Definitions)
	var custom []*spec.Swagger
	for path, crds := range inv.crds {
		for _, crd := range crds {
			s, err := crdbuilder.BuildOpenAPIV2(crd, path[strings.LastIndex(path, "/")+1:], crdbuilder.Options{V2: true})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", crd.Name, err)
			}
			custom = append(custom, s)
		}
	}
	if len(custom) == 0 {
		return static, nil
	}
	return crdbuilder.MergeSpecs(static, custom...)
}
