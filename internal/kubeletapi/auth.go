package kubeletapi

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/union"
	certificates "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/options"
)

// How long the API server's answers are remembered; kubelet's defaults.
const (
	tokenTTL = 2 * time.Minute
	allowTTL = 5 * time.Minute
	denyTTL  = 30 * time.Second
)

// ClientCA says by which authorities a client's certificate is verified now.
type ClientCA interface {
	ClientVerifyOptions() (x509.VerifyOptions, bool)
}

// auth decides who may ask what.
type auth struct {
	cfg     *Config
	who     authenticator.Request
	whether authorizer.Authorizer
}

func newAuth(cfg *Config) (*auth, error) {
	tokens, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient:  cfg.Client.AuthenticationV1(),
		TokenAccessReviewTimeout: 10 * time.Second,
		WebhookRetryBackoff:      options.DefaultAuthWebhookRetryBackoff(),
		CacheTTL:                 tokenTTL,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	reviews, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: cfg.Client.AuthorizationV1(),
		AllowCacheTTL:             allowTTL,
		DenyCacheTTL:              denyTTL,
		WebhookRetryBackoff:       options.DefaultAuthWebhookRetryBackoff(),
	}.New()
	if err != nil {
		return nil, fmt.Errorf("authorization: %w", err)
	}
	return &auth{
		cfg:     cfg,
		who:     union.New(certificates.NewDynamic(cfg.ClientCA.ClientVerifyOptions, certificates.CommonNameUserConversion), tokens),
		whether: reviews,
	}, nil
}

// protect lets requests through to next that are allowed.
func (a *auth) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok, err := a.who.AuthenticateRequest(r)
		if err != nil || !ok {
			if err != nil {
				a.cfg.Log.Warn("a client of the kubelet API could not be authenticated", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
			}
			fail(w, http.StatusUnauthorized, "Unauthorized")
			return
		}
		// The API server lets this group do anything: it needn't be asked.
		if slices.Contains(info.User.GetGroups(), user.SystemPrivilegedGroup) {
			next.ServeHTTP(w, r)
			return
		}
		denied := ""
		for _, attributes := range a.attributes(info.User, r) {
			decision, _, err := a.whether.Authorize(r.Context(), attributes)
			if err != nil {
				a.cfg.Log.Error("asking whether a client of the kubelet API may do this", "user", info.User.GetName(), "path", r.URL.Path, "err", err)
				fail(w, http.StatusInternalServerError, fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=%s, subresource=%s)",
					info.User.GetName(), attributes.GetVerb(), attributes.GetResource(), attributes.GetSubresource()))
				return
			}
			if decision == authorizer.DecisionAllow {
				next.ServeHTTP(w, r)
				return
			}
			denied = fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=%s, subresource(s)=[%s])",
				info.User.GetName(), attributes.GetVerb(), attributes.GetResource(), strings.Join(subresources(r.URL.Path), " "))
		}
		fail(w, http.StatusForbidden, denied)
	})
}

// attributes are the permissions any one of which allows a request.
func (a *auth) attributes(who user.Info, r *http.Request) []authorizer.Attributes {
	verb := map[string]string{
		http.MethodPost: "create", http.MethodGet: "get", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
	}[r.Method]
	var all []authorizer.Attributes
	for _, sub := range subresources(r.URL.Path) {
		all = append(all, authorizer.AttributesRecord{
			User: who, Verb: verb, APIVersion: "v1", Resource: "nodes", Subresource: sub, Name: a.cfg.NodeName,
			ResourceRequest: true, Path: r.URL.Path,
		})
	}
	return all
}

// subresources are what of the node a path is, the narrowest first, as kubelet
// sees it.
func subresources(path string) []string {
	under := func(root string) bool { return path == root || strings.HasPrefix(path, root+"/") }
	switch {
	case under("/pods"), under("/runningpods"):
		return []string{"pods", "proxy"}
	case under("/healthz"):
		return []string{"healthz", "proxy"}
	case under("/stats"):
		return []string{"stats"}
	case under("/metrics"):
		return []string{"metrics"}
	}
	return []string{"proxy"}
}
