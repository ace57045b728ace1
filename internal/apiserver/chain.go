package apiserver

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	genericfeatures "k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"

	"unipod.dev/unipod/internal/apiserver/inproc"
)

// readyWait is how long a request that comes early waits for the server.
const readyWait = 10 * time.Second

// chain is what a request goes through before it reaches a resource: upstream's
// filters in upstream's order. It lacks those for several API servers, and the
// one that turns 404 into 503 until a signal only upstream's own Run gives:
// gate is here for that.
func chain(handler http.Handler, c *genericapiserver.Config) http.Handler {
	handler = genericapifilters.WithAuthorization(handler, c.Authorization.Authorizer, c.Serializer)
	handler = genericfilters.WithMaxInFlightLimit(handler, c.MaxRequestsInFlight, c.MaxMutatingRequestsInFlight, c.LongRunningFunc)
	if c.FeatureGate.Enabled(genericfeatures.ConstrainedImpersonation) {
		handler = impersonation.WithConstrainedImpersonation(handler, c.Authorization.Authorizer, c.Serializer)
	} else {
		handler = impersonation.WithImpersonation(handler, c.Authorization.Authorizer, c.Serializer)
	}
	handler = genericapifilters.WithAudit(handler, c.AuditBackend, c.AuditPolicyRuleEvaluator, c.LongRunningFunc)
	unauthorized := genericapifilters.WithFailedAuthenticationAudit(genericapifilters.Unauthorized(c.Serializer), c.AuditBackend, c.AuditPolicyRuleEvaluator)
	handler = genericapifilters.WithAuthentication(handler, c.Authentication.Authenticator, unauthorized, c.Authentication.APIAudiences, c.Authentication.RequestHeaderConfig)
	handler = genericapifilters.WithWarningRecorder(handler)
	handler = genericfilters.WithTimeoutForNonLongRunningRequests(handler, c.LongRunningFunc)
	handler = genericapifilters.WithRequestDeadline(handler, c.AuditBackend, c.AuditPolicyRuleEvaluator, c.LongRunningFunc, c.Serializer, c.RequestTimeout)
	handler = genericfilters.WithWaitGroup(handler, c.LongRunningFunc, c.NonLongRunningRequestWaitGroup)
	handler = genericapifilters.WithCacheControl(handler)
	handler = genericapifilters.WithLatencyTrackers(handler)
	handler = withPatience(handler, patience)
	handler = genericapifilters.WithRequestInfo(handler, c.RequestInfoResolver)
	handler = genericapifilters.WithRequestReceivedTimestamp(handler)
	handler = genericfilters.WithPanicRecovery(handler, c.RequestInfoResolver)
	return genericapifilters.WithAuditInit(handler)
}

// startingKey marks the server's own first writes, which make it ready.
type startingKey struct{}

// gate keeps requests waiting until what decides about them has been read from
// the store. Whether the server is well may be asked at any time, and this
// process may read: that is how it becomes ready.
func gate(handler http.Handler, ready <-chan struct{}, failed context.Context) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-ready:
			handler.ServeHTTP(w, req)
			return
		default:
		}
		if early(req) {
			handler.ServeHTTP(w, req)
			return
		}
		timeout := time.NewTimer(readyWait)
		defer timeout.Stop()
		select {
		case <-ready:
			handler.ServeHTTP(w, req)
			return
		case <-req.Context().Done():
		case <-failed.Done():
		case <-timeout.C:
		}
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the API server is starting", http.StatusServiceUnavailable)
	})
}

func early(req *http.Request) bool {
	if slices.Contains(healthPaths, req.URL.Path) {
		return true
	}
	if !inproc.Here(req.Context()) {
		return false
	}
	return req.Method == http.MethodGet || req.Context().Value(startingKey{}) != nil
}

// until is a part of /readyz: it fails until something is done.
type until struct {
	name string
	done <-chan struct{}
}

func (u until) Name() string { return u.name }

func (u until) Check(*http.Request) error {
	select {
	case <-u.done:
		return nil
	default:
		return errors.New("not done yet")
	}
}
