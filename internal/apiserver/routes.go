package apiserver

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"github.com/emicklei/go-restful/v3"
	genericapi "k8s.io/apiserver/pkg/endpoints"
)

// never is the pattern of a route whose own was dropped.
var never = regexp.MustCompile(`^\b$`)

// dropPatterns frees the compiled regular expression that go-restful keeps of
// every route, a quarter of what an idle API server has in memory. Its
// CurlyRouter, which upstream uses, goes by the parts of the path instead; the
// expression is for another router and for answers to OPTIONS that upstream
// doesn't have it give. The field is the library's own: when it isn't there
// any more nothing is dropped, and it returns how many were.
func dropPatterns(container *restful.Container) (dropped int) {
	for _, service := range container.RegisteredWebServices() {
		routes := service.Routes()
		for i := range routes {
			expr := reflect.ValueOf(&routes[i]).Elem().FieldByName("pathExpr")
			if !expr.IsValid() || expr.Kind() != reflect.Pointer || expr.IsNil() {
				continue
			}
			matcher := reflect.NewAt(expr.Type().Elem(), expr.UnsafePointer()).Elem().FieldByName("Matcher")
			if matcher.IsValid() && matcher.Type() == reflect.TypeOf(never) {
				matcher.Set(reflect.ValueOf(never))
				dropped++
			}
		}
	}
	return dropped
}

// described are the web services as OpenAPI describes them.
type described struct {
	// kept are those whose routes still have what describes them.
	kept func() []*restful.WebService
	// versions are those whose routes can be made anew, by path: what describes
	// them is 3 MB that an API server has no other use for.
	versions map[string]*genericapi.APIGroupVersion
}

func pathOf(ws *restful.WebService) string { return strings.TrimPrefix(ws.RootPath(), "/") }

// dropDocs frees what describes the routes of versions.
func (d *described) dropDocs() {
	for _, ws := range d.kept() {
		if _, again := d.versions[pathOf(ws)]; !again {
			continue
		}
		routes := ws.Routes()
		for i := range routes {
			r := &routes[i]
			r.ParameterDocs, r.ResponseErrors, r.DefaultResponse, r.Metadata = nil, nil, nil, nil
			r.ReadSample, r.WriteSample, r.WriteSamples = nil, nil, nil
		}
	}
}

// paths are the paths of all.
func (d *described) paths() (all []string) {
	for _, ws := range d.kept() {
		all = append(all, pathOf(ws))
	}
	return all
}

// service is the one at a path; nil when there is none. It is for one at a
// time: installing writes what the first time has written.
func (d *described) service(path string) (*restful.WebService, error) {
	if v, ok := d.versions[path]; ok {
		scratch := restful.NewContainer()
		if _, _, err := v.InstallREST(scratch); err != nil {
			return nil, fmt.Errorf("the routes of /%s: %w", path, err)
		}
		return scratch.RegisteredWebServices()[0], nil
	}
	for _, ws := range d.kept() {
		if pathOf(ws) == path {
			return ws, nil
		}
	}
	return nil, nil
}
