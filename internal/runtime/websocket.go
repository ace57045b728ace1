package runtime

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"strconv"

	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The streaming library speaks SPDY and WebSocket v4. What newer clients
// speak is put in front of it as the API server does: WebSocket v5 of exec and
// attach (KEP-4006), which has a half-close, is translated, and port-forward's
// SPDY tunneled in a WebSocket is unwrapped.

// streamOptions are the query of a streaming URL: which streams the client
// was promised, which a translator must know before it connects.
func streamOptions(address string, o proxy.Options) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	q := url.Values{}
	for name, on := range map[string]bool{"stdin": o.Stdin, "stdout": o.Stdout, "stderr": o.Stderr, "tty": o.Tty} {
		if on {
			q.Set(name, "true")
		}
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// refusal tells a client why its connection was not passed on.
type refusal struct{}

func (refusal) Error(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, err.Error(), http.StatusBadGateway)
}

// withWebSockets serves what next doesn't speak; base is where next is served.
func withWebSockets(next http.Handler, base *url.URL) http.Handler {
	// To ourselves, whom we need not prove who we are.
	self := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		location := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: req.URL.Path}
		switch {
		case wsstream.IsWebSocketRequestWithTunnelingProtocol(req):
			upgrade := utilproxy.NewUpgradeAwareHandler(location, self, false, true, refusal{})
			proxy.NewTunnelingHandler(upgrade).ServeHTTP(w, req)
		case wsstream.IsWebSocketRequestWithStreamCloseProtocol(req):
			on := func(name string) bool {
				v, _ := strconv.ParseBool(req.URL.Query().Get(name))
				return v
			}
			proxy.NewStreamTranslatorHandler(location, self, 0, proxy.Options{
				Stdin: on("stdin"), Stdout: on("stdout"), Stderr: on("stderr"), Tty: on("tty"),
			}).ServeHTTP(w, req)
		default:
			next.ServeHTTP(w, req)
		}
	})
}
