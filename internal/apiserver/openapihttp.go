package apiserver

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/kube-openapi/pkg/handler3"
)

const (
	openAPIv2 = "/openapi/v2"
	openAPIv3 = "/openapi/v3"
)

// formats are those a document can be had in: its media subtype, and how the
// answer is called.
var formats = []struct {
	subtype, answer string
	protobuf, v2    bool
}{
	{"json", "application/json", false, true},
	{"json", "application/json", false, false},
	{"com.github.proto-openapi.spec.v2@v1.0+protobuf", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", true, true},
	{"com.github.proto-openapi.spec.v2.v1.0+protobuf", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", true, true},
	{"com.github.proto-openapi.spec.v3@v1.0+protobuf", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf", true, false},
	{"com.github.proto-openapi.spec.v3.v1.0+protobuf", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf", true, false},
}

// negotiate finds the first format a client accepts; JSON when it doesn't say.
func negotiate(accept string, v2 bool) (answer string, protobuf, ok bool) {
	if accept == "" {
		accept = "*/*"
	}
	for _, clause := range goautoneg.ParseAccept(accept) {
		for _, f := range formats {
			if f.v2 == v2 && (clause.Type == "application" || clause.Type == "*") && (clause.SubType == f.subtype || clause.SubType == "*") {
				return f.answer, f.protobuf, true
			}
		}
	}
	return "", false, false
}

func (o *openAPI) install(m *mux.PathRecorderMux) {
	m.HandleFunc(openAPIv2, func(w http.ResponseWriter, req *http.Request) {
		inv, err := o.inventory()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		o.serve(w, req, inv, "", inv.all())
	})
	m.HandleFunc(openAPIv3, o.index)
	m.UnlistedHandlePrefix(openAPIv3+"/", http.HandlerFunc(o.path))
}

// index lists the documents of v3 with their hashes.
func (o *openAPI) index(w http.ResponseWriter, req *http.Request) {
	inv, err := o.inventory()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	list := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for path, hash := range inv.hashes {
		list.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: v3URL(path, hash)}
	}
	text, err := json.Marshal(list)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Etag", strconv.Quote(inv.all()))
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(text))
}

func v3URL(path, hash string) string {
	return openAPIv3 + "/" + path + "?" + url.Values{"hash": {hash}}.Encode()
}

func (o *openAPI) path(w http.ResponseWriter, req *http.Request) {
	inv, err := o.inventory()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	path := strings.TrimPrefix(req.URL.Path, openAPIv3+"/")
	hash, ok := inv.hashes[path]
	if !ok {
		http.NotFound(w, req)
		return
	}
	switch asked := req.URL.Query().Get("hash"); asked {
	case "":
	case hash:
		// The document of a hash never changes.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
	default:
		http.Redirect(w, req, v3URL(path, hash), http.StatusMovedPermanently)
		return
	}
	o.serve(w, req, inv, path, hash)
}

func (o *openAPI) serve(w http.ResponseWriter, req *http.Request, inv *inventory, path, hash string) {
	answer, protobuf, ok := negotiate(req.Header.Get("Accept"), path == "")
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	doc, err := o.document(inv, path, hash, protobuf)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Vary", "Accept, Accept-Encoding")
	h.Set("Content-Type", answer)
	h.Set("Etag", strconv.Quote(hash))
	text := doc.gzip
	if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
	} else if text, err = expand(doc.gzip); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(text))
}

func compress(text []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(text) //nolint:errcheck // a buffer doesn't fail
	z.Close()     //nolint:errcheck // nor here
	return bytes.Clone(out.Bytes())
}

func expand(text []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
