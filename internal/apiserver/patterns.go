package apiserver

import (
	"reflect"
	"regexp"

	"github.com/emicklei/go-restful/v3"
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
