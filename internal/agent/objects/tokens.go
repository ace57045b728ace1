package objects

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

const (
	// oldest is the age at which a token is replaced whatever its life, and
	// jitter spreads the requests; kubelet's.
	oldest = 24 * time.Hour
	jitter = 10 * time.Second
	// tokenCheck is how often tokens are looked at.
	tokenCheck = time.Minute
)

// tokens are the service account tokens of pods, kept until they have used up
// 80 % of their life.
type tokens struct {
	cfg Config

	mu    sync.Mutex
	cache map[tokenKey]token
}

type tokenKey struct {
	pod      types.UID
	account  string
	audience string
	life     int64 // in seconds
}

type token struct {
	text    string
	refresh time.Time
	expires time.Time
}

// Token is a token of the pod's service account, bound to the pod. It
// implements volume.Config's Token.
func (s *Source) Token(ctx context.Context, pod *v1.Pod, source *v1.ServiceAccountTokenProjection) ([]byte, error) {
	return s.tokens.get(ctx, pod, source)
}

func (t *tokens) get(ctx context.Context, pod *v1.Pod, source *v1.ServiceAccountTokenProjection) ([]byte, error) {
	k := tokenKey{pod.UID, pod.Spec.ServiceAccountName, source.Audience, ptr.Deref(source.ExpirationSeconds, 3600)}
	t.mu.Lock()
	have, ok := t.cache[k]
	t.mu.Unlock()
	now := t.cfg.Clock.Now()
	if ok && now.Before(have.refresh) {
		return []byte(have.text), nil
	}
	fresh, err := t.request(ctx, pod, k)
	switch {
	case err == nil:
	case !ok:
		return nil, fmt.Errorf("failed to fetch token: %w", err)
	case now.After(have.expires):
		return nil, fmt.Errorf("token of service account %s/%s expired and refresh failed: %w", pod.Namespace, k.account, err)
	default:
		t.cfg.Log.Warn("replacing a service account token failed; the old one is still valid", "pod", pod.Namespace+"/"+pod.Name, "err", err)
		return []byte(have.text), nil
	}
	t.mu.Lock()
	t.cache[k] = fresh
	t.mu.Unlock()
	return []byte(fresh.text), nil
}

func (t *tokens) request(ctx context.Context, pod *v1.Pod, k tokenKey) (token, error) {
	spec := authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &k.life,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}
	if k.audience != "" {
		spec.Audiences = []string{k.audience}
	}
	got, err := t.cfg.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, k.account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return token{}, err
	}
	if strings.TrimSpace(got.Status.Token) == "" {
		return token{}, fmt.Errorf("the API server issued an empty token for service account %s/%s", pod.Namespace, k.account)
	}
	// The server may have shortened the life that was asked for.
	life := time.Duration(ptr.Deref(got.Spec.ExpirationSeconds, k.life)) * time.Second
	expires := got.Status.ExpirationTimestamp.Time
	early := time.Duration(rand.Float64() * float64(jitter))
	refresh := expires.Add(-life / 5)
	if limit := expires.Add(oldest - life); limit.Before(refresh) {
		refresh = limit
	}
	return token{text: got.Status.Token, refresh: refresh.Add(-early), expires: expires}, nil
}

// watch tells of pods with a token to be replaced, until ctx ends.
func (t *tokens) watch(ctx context.Context, expiring func(types.UID)) {
	ticker := t.cfg.Clock.NewTicker(tokenCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		for _, uid := range t.due(t.cfg.Clock.Now()) {
			expiring(uid)
		}
	}
}

// due lists the pods with a token to be replaced. It asks again at each check:
// a request may have failed.
func (t *tokens) due(now time.Time) []types.UID {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := map[types.UID]bool{}
	var list []types.UID
	for k, tok := range t.cache {
		if now.Before(tok.refresh) || seen[k.pod] {
			continue
		}
		seen[k.pod] = true
		list = append(list, k.pod)
	}
	return list
}

func (t *tokens) forget(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.cache {
		if k.pod == uid {
			delete(t.cache, k)
		}
	}
}
