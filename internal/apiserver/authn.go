package apiserver

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/union"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"
	kubeauthenticator "k8s.io/kubernetes/pkg/kubeapiserver/authenticator"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/auth/authenticator/token/bootstrap"
)

// Issuer is who signs service account tokens, and their default audience.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// tokenCache is how long the answer to a token is remembered, upstream's.
const tokenCache = 10 * time.Second

// accountKeys verifies service account tokens by the authority's keys.
func accountKeys(pki PKI) (serviceaccount.PublicKeysGetter, error) {
	getter, err := serviceaccount.StaticPublicKeysGetter(pki.ServiceAccountPublicKeys())
	if err != nil {
		return nil, fmt.Errorf("the keys of service account tokens: %w", err)
	}
	return getter, nil
}

// authentication is upstream's: client certificates of our authority, service
// account and bootstrap tokens, nobody else; anonymous only where it is asked
// whether the server is well.
func authentication(ctx context.Context, pki PKI, keys serviceaccount.PublicKeysGetter, client kubernetes.Interface, shared informers.SharedInformerFactory) (genericapiserver.AuthenticationInfo, error) {
	audiences := authenticator.Audiences{Issuer}
	info := genericapiserver.AuthenticationInfo{APIAudiences: audiences}
	var anonymous []apiserver.AnonymousAuthCondition
	for _, p := range healthPaths {
		anonymous = append(anonymous, apiserver.AnonymousAuthCondition{Path: p})
	}
	request, _, _, _, err := kubeauthenticator.Config{
		Anonymous:                      apiserver.AnonymousAuthConfig{Enabled: true, Conditions: anonymous},
		APIAudiences:                   audiences,
		ServiceAccountLookup:           true,
		ServiceAccountIssuers:          []string{Issuer},
		ServiceAccountPublicKeysGetter: keys,
		ServiceAccountTokenGetter:      tokenObjects{client, shared.Core().V1().ServiceAccounts().Lister(), shared.Core().V1().Pods().Lister()},
		SecretsWriter:                  client.CoreV1(),
		BootstrapToken:                 true,
		BootstrapTokenAuthenticator:    bootstrap.NewTokenAuthenticator(liveSecrets{client, metav1.NamespaceSystem}),
		TokenSuccessCacheTTL:           tokenCache,
		ClientCAContentProvider:        clientCA{pki},
	}.New(ctx)
	if err != nil {
		return info, fmt.Errorf("authentication: %w", err)
	}
	info.Authenticator = union.New(authenticator.RequestFunc(authenticateLoopback), request)
	return info, nil
}

// clientCA is the authority as upstream's certificate authenticator wants it.
// It is asked anew for every connection, so it has nobody to notify.
type clientCA struct{ pki PKI }

func (clientCA) Name() string                                { return "unipod" }
func (c clientCA) CurrentCABundleContent() []byte            { return c.pki.CABundlePEM() }
func (c clientCA) VerifyOptions() (x509.VerifyOptions, bool) { return c.pki.ClientVerifyOptions() }
func (clientCA) AddListener(dynamiccertificates.Listener)    {}

// tokenObjects finds what a token is bound to. What an informer has not seen
// yet is asked of the API, as upstream's does. Secrets are never cached.
type tokenObjects struct {
	client   kubernetes.Interface
	accounts corev1listers.ServiceAccountLister
	pods     corev1listers.PodLister
}

func (t tokenObjects) GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	if a, err := t.accounts.ServiceAccounts(namespace).Get(name); err == nil {
		return a, nil
	}
	return t.client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	if p, err := t.pods.Pods(namespace).Get(name); err == nil {
		return p, nil
	}
	return t.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return t.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	return t.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetValidatingWebhookConfiguration(ctx context.Context, name string) (*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	return t.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetMutatingWebhookConfiguration(ctx context.Context, name string) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	return t.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, name, metav1.GetOptions{})
}

// liveSecrets is a lister that caches nothing: a bootstrap token is asked for
// once in a node's life, and an informer would keep every Secret in memory.
type liveSecrets struct {
	client    kubernetes.Interface
	namespace string
}

func (l liveSecrets) Get(name string) (*corev1.Secret, error) {
	return l.client.CoreV1().Secrets(l.namespace).Get(context.Background(), name, metav1.GetOptions{})
}

func (l liveSecrets) List(selector labels.Selector) ([]*corev1.Secret, error) {
	list, err := l.client.CoreV1().Secrets(l.namespace).List(context.Background(), metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, err
	}
	secrets := make([]*corev1.Secret, len(list.Items))
	for i := range list.Items {
		secrets[i] = &list.Items[i]
	}
	return secrets, nil
}
