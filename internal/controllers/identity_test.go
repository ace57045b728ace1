package controllers_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRootCA(t *testing.T) {
	s := newSpace(t)
	s.until("the namespace has kube-root-ca.crt", func() bool {
		m, err := s.CoreV1().ConfigMaps(s.ns).Get(s.ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err == nil && m.Data["ca.crt"] == string(it.keys.CABundlePEM())
	})
	s.until("a ClusterTrustBundle says the same", func() bool {
		list, err := s.CertificatesV1().ClusterTrustBundles().List(s.ctx, metav1.ListOptions{FieldSelector: "spec.signerName=kubernetes.io/kube-apiserver-serving"})
		s.must(err)
		return len(list.Items) == 1 && bytes.Contains(it.keys.CABundlePEM(), bytes.TrimSpace([]byte(list.Items[0].Spec.TrustBundle)))
	})
}

// A renewed authority reaches whoever verifies the API by a copy of its
// certificates, while everything runs.
func TestRenewedRootCA(t *testing.T) {
	s := newSpace(t)
	secrets := s.CoreV1().Secrets(s.ns)
	_, err := secrets.Create(s.ctx, &v1.Secret{Type: v1.SecretTypeServiceAccountToken,
		ObjectMeta: metav1.ObjectMeta{Name: "ci", Annotations: map[string]string{v1.ServiceAccountNameKey: "default"}}}, metav1.CreateOptions{})
	s.must(err)
	told := func(what string) {
		t.Helper()
		want := it.keys.CABundlePEM()
		s.until(what+": kube-root-ca.crt", func() bool {
			m, err := s.CoreV1().ConfigMaps(s.ns).Get(s.ctx, "kube-root-ca.crt", metav1.GetOptions{})
			return err == nil && m.Data["ca.crt"] == string(want)
		})
		s.until(what+": the Secret with a token", func() bool {
			got, err := secrets.Get(s.ctx, "ci", metav1.GetOptions{})
			s.must(err)
			return bytes.Equal(got.Data[v1.ServiceAccountRootCAKey], want)
		})
		s.until(what+": the ClusterTrustBundle", func() bool {
			list, err := s.CertificatesV1().ClusterTrustBundles().List(s.ctx, metav1.ListOptions{FieldSelector: "spec.signerName=kubernetes.io/kube-apiserver-serving"})
			s.must(err)
			return len(list.Items) == 1 && strings.Count(list.Items[0].Spec.TrustBundle, "BEGIN CERTIFICATE") == bytes.Count(want, []byte("BEGIN CERTIFICATE"))
		})
		s.until(what+": by what the API's clients are verified", func() bool {
			m, err := s.CoreV1().ConfigMaps("kube-system").Get(s.ctx, "extension-apiserver-authentication", metav1.GetOptions{})
			return err == nil && m.Data["client-ca-file"] == string(want)
		})
	}
	told("at first")
	before := it.keys.CABundlePEM()
	ctx, stop := context.WithCancel(s.ctx)
	ended := make(chan error, 1)
	renewed := it.keys.Renewed()
	go func() { ended <- it.keys.Run(ctx, func() {}) }()
	for !it.time.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	it.time.Step(8*365*24*time.Hour + time.Hour)
	<-renewed
	stop()
	s.must(<-ended)
	if bytes.Equal(before, it.keys.CABundlePEM()) {
		t.Fatal("the authority is the same")
	}
	told("renewed")
}

func TestServiceAccountTokenSecret(t *testing.T) {
	s := newSpace(t)
	secrets := s.CoreV1().Secrets(s.ns)
	_, err := secrets.Create(s.ctx, &v1.Secret{Type: v1.SecretTypeServiceAccountToken,
		ObjectMeta: metav1.ObjectMeta{Name: "ci", Annotations: map[string]string{v1.ServiceAccountNameKey: "default"}}}, metav1.CreateOptions{})
	s.must(err)
	var token string
	s.until("the Secret has a token", func() bool {
		got, err := secrets.Get(s.ctx, "ci", metav1.GetOptions{})
		s.must(err)
		token = string(got.Data[v1.ServiceAccountTokenKey])
		return token != "" && string(got.Data[v1.ServiceAccountNamespaceKey]) == s.ns
	})
	review, err := s.AuthenticationV1().TokenReviews().Create(s.ctx, &authentication.TokenReview{Spec: authentication.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	s.must(err)
	if want := "system:serviceaccount:" + s.ns + ":default"; !review.Status.Authenticated || review.Status.User.Username != want {
		t.Errorf("the token is of %q (%s), want %q", review.Status.User.Username, review.Status.Error, want)
	}
}

func TestCertificateSigningRequest(t *testing.T) {
	s := newSpace(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane", Organization: []string{"dev"}}}, key)
	s.must(err)
	requests := s.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(s.ctx, &certificates.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "jane-"},
		Spec: certificates.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificates.KubeAPIServerClientSignerName, Usages: []certificates.KeyUsage{certificates.UsageClientAuth},
		}}, metav1.CreateOptions{})
	s.must(err)
	csr.Status.Conditions = []certificates.CertificateSigningRequestCondition{{Type: certificates.CertificateApproved, Status: v1.ConditionTrue, Reason: "Test"}}
	_, err = requests.UpdateApproval(s.ctx, csr.Name, csr, metav1.UpdateOptions{})
	s.must(err)
	s.until("it is signed", func() bool {
		csr, err = requests.Get(s.ctx, csr.Name, metav1.GetOptions{})
		s.must(err)
		return len(csr.Status.Certificate) > 0
	})
	block, _ := pem.Decode(csr.Status.Certificate)
	cert, err := x509.ParseCertificate(block.Bytes)
	s.must(err)
	options, _ := it.keys.ClientVerifyOptions()
	if _, err := cert.Verify(options); err != nil || cert.Subject.CommonName != "jane" {
		t.Errorf("the certificate of %s: %v", cert.Subject, err)
	}
}

func TestClusterRoleAggregation(t *testing.T) {
	s := newSpace(t)
	roles := s.RbacV1().ClusterRoles()
	label := map[string]string{"example.com/into": s.ns}
	rule := rbac.PolicyRule{APIGroups: []string{"example.com"}, Resources: []string{"widgets"}, Verbs: []string{"get"}}
	for _, r := range []*rbac.ClusterRole{
		{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-all"}, AggregationRule: &rbac.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: label}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-part", Labels: label}, Rules: []rbac.PolicyRule{rule}},
	} {
		_, err := roles.Create(s.ctx, r, metav1.CreateOptions{})
		s.must(err)
		defer func() { s.must(roles.Delete(s.ctx, r.Name, metav1.DeleteOptions{})) }()
	}
	s.until("the rule is in the whole", func() bool {
		all, err := roles.Get(s.ctx, s.ns+"-all", metav1.GetOptions{})
		s.must(err)
		return len(all.Rules) == 1 && all.Rules[0].Resources[0] == "widgets"
	})
}
