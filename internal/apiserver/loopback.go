package apiserver

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"

	"unipod.dev/unipod/internal/apiserver/inproc"
)

// loopbackUser is who this process is to its own API.
var loopbackUser = &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.AllAuthenticated, user.SystemPrivilegedGroup}}

func authenticateLoopback(req *http.Request) (*authenticator.Response, bool, error) {
	if !inproc.Here(req.Context()) {
		return nil, false, nil
	}
	return &authenticator.Response{User: loopbackUser}, true, nil
}

// loopbackConfig is a client's configuration for the handler in this process.
func loopbackConfig(t http.RoundTripper) *rest.Config {
	return &rest.Config{
		Host:      "http://unipod.internal",
		Transport: t,
		ContentConfig: rest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
		UserAgent:          "unipod",
		QPS:                -1,
		DisableCompression: true,
	}
}
