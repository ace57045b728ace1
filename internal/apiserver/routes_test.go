package apiserver

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/emicklei/go-restful/v3"
)

// Routes without their patterns route as before. When this fails after
// go-restful was updated, dropPatterns is to be looked at, or removed.
func TestDropPatterns(t *testing.T) {
	container := restful.NewContainer()
	container.Router(restful.CurlyRouter{})
	service := new(restful.WebService).Path("/api/v1")
	service.Route(service.GET("/namespaces/{ns}/pods/{name}").To(func(r *restful.Request, w *restful.Response) {
		fmt.Fprint(w, r.PathParameter("ns"), "/", r.PathParameter("name"))
	}))
	service.Route(service.GET("/namespaces/{ns}/pods/{name}/proxy/{path:*}").To(func(r *restful.Request, w *restful.Response) {
		fmt.Fprint(w, "proxy ", r.PathParameter("path"))
	}))
	container.Add(service)
	if n := dropPatterns(container); n != 2 {
		t.Errorf("%d patterns dropped, want 2", n)
	}
	for path, want := range map[string]string{
		"/api/v1/namespaces/a/pods/b":           "a/b",
		"/api/v1/namespaces/a/pods/b/proxy/c/d": "proxy c/d",
		"/api/v1/namespaces/a/pods":             "404: Page Not Found",
	} {
		w := httptest.NewRecorder()
		container.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if got := w.Body.String(); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
