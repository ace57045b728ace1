package apiserver

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/utils/ptr"
)

func TestAnonymous(t *testing.T) {
	w := start(t)
	for path, want := range map[string]int{
		"/healthz": 200, "/livez": 200, "/readyz": 200,
		"/healthz/ping": 401, "/version": 401, "/api": 401, "/apis": 401, "/api/v1/namespaces": 401, "/metrics": 401, "/openapi/v2": 401, "/": 401, "/no/such": 401,
	} {
		resp, body := raw(t, w.remote(), path, nil)
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d: %s", path, resp.StatusCode, want, body)
		}
	}
	// Not even this process's own answers are for who only says so.
	c := w.remote()
	c.BearerToken = "garbage"
	if resp, _ := raw(t, c, "/readyz", nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a bad token: %d", resp.StatusCode)
	}
}

func TestCertificates(t *testing.T) {
	w := start(t)
	k := clients(t, w.as(t, "jane", "devs", "ops"))
	r, err := k.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if u := r.Status.UserInfo; u.Username != "jane" || strings.Join(u.Groups, " ") != "devs ops system:authenticated" && strings.Join(u.Groups, " ") != "ops devs system:authenticated" {
		t.Errorf("%+v", u)
	}
	other := newAuthority(t)
	c := w.remote()
	cert, key, err := other.Client("jane", "system:masters").PEM()
	if err != nil {
		t.Fatal(err)
	}
	c.CertData, c.KeyData = cert, key
	if resp, _ := raw(t, c, "/version", nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("another authority's certificate: %d", resp.StatusCode)
	}
	if _, body := raw(t, w.admin(t), "/version", nil); !strings.Contains(body, KubernetesVersion) {
		t.Errorf("version: %s", body)
	}
}

func TestTokens(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, k := t.Context(), clients(t, w.Loopback())
	p, err := k.CoreV1().Pods(ns).Create(ctx, pod("holder"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: ptr.To[int64](600),
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
	}}
	made, err := k.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(made.Status.ExpirationTimestamp.Time); d > 10*time.Minute {
		t.Errorf("the token is valid for %v", d)
	}
	c := w.remote()
	c.BearerToken = made.Status.Token
	who, err := clients(t, c).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if u := who.Status.UserInfo; u.Username != "system:serviceaccount:"+ns+":default" || u.Extra["authentication.kubernetes.io/pod-name"][0] != "holder" {
		t.Errorf("%+v", u)
	}
	review := func(token string, audiences ...string) authenticationv1.TokenReviewStatus {
		t.Helper()
		r, err := k.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	if !review(made.Status.Token).Authenticated {
		t.Error("a token that is valid isn't")
	}
	if review(made.Status.Token, "other").Authenticated {
		t.Error("a token is valid for another audience")
	}
	if review(made.Status.Token[:len(made.Status.Token)-4] + "AAAA").Authenticated {
		t.Error("a token with another signature is valid")
	}
	t.Run("legacy secret", func(t *testing.T) {
		// What the token controller writes into such a Secret is a token without
		// expiry, which is valid as long as the Secret is there.
		account, err := k.CoreV1().ServiceAccounts(ns).Get(ctx, "default", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "legacy", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}}, Type: corev1.SecretTypeServiceAccountToken}
		if s, err = k.CoreV1().Secrets(ns).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, w.keys.ServiceAccountKey())
		if err != nil {
			t.Fatal(err)
		}
		claims, private := serviceaccount.LegacyClaims(*account, *s)
		token, err := generator.GenerateToken(ctx, claims, private)
		if err != nil {
			t.Fatal(err)
		}
		if review(token).Authenticated {
			t.Error("a token that is in no Secret is valid")
		}
		s.Data = map[string][]byte{"token": []byte(token)}
		if _, err := k.CoreV1().Secrets(ns).Update(ctx, s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if !review(token).Authenticated {
			t.Error("a Secret's token isn't valid")
		}
	})
	t.Run("its pod is gone", func(t *testing.T) {
		other, err := k.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", request, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.CoreV1().Pods(ns).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a token outlives its pod", func() error {
			if review(other.Status.Token).Authenticated {
				return errStillValid
			}
			return nil
		})
	})
	t.Run("issuer", func(t *testing.T) {
		_, body := raw(t, w.admin(t), "/.well-known/openid-configuration", nil)
		if !strings.Contains(body, Issuer) {
			t.Errorf("%s", body)
		}
		if _, body := raw(t, w.admin(t), "/openid/v1/jwks", nil); !strings.Contains(body, `"keys"`) {
			t.Errorf("%s", body)
		}
	})
}

func TestBootstrapToken(t *testing.T) {
	w := start(t)
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-abcdef", Namespace: "kube-system"}, Type: "bootstrap.kubernetes.io/token",
		StringData: map[string]string{"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}}
	if _, err := clients(t, w.Loopback()).CoreV1().Secrets("kube-system").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c := w.remote()
	c.BearerToken = "abcdef.0123456789abcdef"
	r, err := clients(t, c).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || r.Status.UserInfo.Username != "system:bootstrap:abcdef" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestRBAC(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, root, jane := t.Context(), clients(t, w.Loopback()), clients(t, w.as(t, "jane"))
	_, err := jane.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Fatalf("%v", err)
	}
	mustContain(t, err, `User "jane" cannot list resource "configmaps"`, ns)
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}}}}
	if _, err := root.RbacV1().Roles(ns).Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bind := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "jane"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"}, Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "jane"}}}
	if _, err := root.RbacV1().RoleBindings(ns).Create(ctx, bind, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a role that was given", func() error {
		_, err := jane.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := jane.CoreV1().ConfigMaps(ns).Get(ctx, "x", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("%v", err)
	}
	if _, err := jane.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("%v", err)
	}
	can := func(verb, resource string) bool {
		t.Helper()
		r, err := jane.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: ns, Verb: verb, Resource: resource}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Allowed
	}
	if !can("list", "configmaps") || can("delete", "configmaps") {
		t.Error("can-i is wrong")
	}
	t.Run("escalation", func(t *testing.T) {
		editor := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "editor"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"roles"}, Verbs: []string{"list", "create"}}}}
		if _, err := root.RbacV1().Roles(ns).Create(ctx, editor, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		edits := bind.DeepCopy()
		edits.Name, edits.RoleRef.Name = "jane-edits", "editor"
		if _, err := root.RbacV1().RoleBindings(ns).Create(ctx, edits, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the role editor", func() error {
			_, err := jane.RbacV1().Roles(ns).List(ctx, metav1.ListOptions{})
			return err
		})
		_, err := jane.RbacV1().Roles(ns).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}}}, metav1.CreateOptions{})
		mustContain(t, err, "attempting to grant RBAC permissions not currently held")
	})
	t.Run("impersonation", func(t *testing.T) {
		c := w.as(t, "jane")
		c.Impersonate = rest.ImpersonationConfig{UserName: "root", Groups: []string{"system:masters"}}
		if _, err := clients(t, c).CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%v", err)
		}
		c = w.admin(t)
		c.Impersonate = rest.ImpersonationConfig{UserName: "nobody"}
		if _, err := clients(t, c).CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%v", err)
		}
	})
}

// No byte of a Secret is in the store's files, and everything else is.
func TestSecretsAtRest(t *testing.T) {
	w := start(t)
	ns := w.namespace(t, nil)
	ctx, k := t.Context(), clients(t, w.Loopback())
	const hidden, shown = "hidden-7f3a9c", "shown-7f3a9c"
	if _, err := k.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"a": hidden}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"a": shown}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(w.dir, "api"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(all.String(), hidden) || !strings.Contains(all.String(), shown) {
		t.Errorf("the Secret is in the store: %v; the ConfigMap is: %v", strings.Contains(all.String(), hidden), strings.Contains(all.String(), shown))
	}
	s, err := k.CoreV1().Secrets(ns).Get(ctx, "s", metav1.GetOptions{})
	if err != nil || string(s.Data["a"]) != hidden {
		t.Errorf("%v", err)
	}
}

func TestAudit(t *testing.T) {
	w := start(t)
	ctx, k := t.Context(), clients(t, w.as(t, "auditor", "system:masters"))
	if _, err := k.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "audited"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.CoreV1().ConfigMaps("audited").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Data: map[string]string{"k": "audited-value"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the audit log", func() error {
		b, err := os.ReadFile(w.audit)
		if err != nil {
			return err
		}
		for _, part := range []string{`"user":{"username":"auditor"`, `"verb":"create"`, "audited-value", `"code":201`} {
			if !strings.Contains(string(b), part) {
				return errNotYet(part)
			}
		}
		return nil
	})
	info, err := os.Stat(w.audit)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
