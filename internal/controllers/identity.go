package controllers

import (
	"context"
	"fmt"
	"time"

	certificates "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	certificatesinformers "k8s.io/client-go/informers/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/approver"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/certificates/clustertrustbundlepublisher"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/certificates/signer"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// signedFor is the longest life of a certificate that is signed on request;
// upstream's default.
const signedFor = 365 * 24 * time.Hour

func newServiceAccount(ctx context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	c, err := serviceaccountcontroller.NewServiceAccountsController(klog.FromContext(ctx), core.ServiceAccounts(), core.Namespaces(), s.client,
		serviceaccountcontroller.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newServiceAccountToken(ctx context.Context, s *set) (loop, error) {
	if s.AccountKey == nil {
		return nil, nil
	}
	tokens, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, s.AccountKey)
	if err != nil {
		return nil, fmt.Errorf("the key of service account tokens: %w", err)
	}
	core := s.Informers.Core().V1()
	return s.ofRootCA(func(ca []byte) (loop, error) {
		c, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx), core.ServiceAccounts(), core.Secrets(), s.client,
			serviceaccountcontroller.TokensControllerOptions{TokenGenerator: tokens, RootCA: ca})
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) { c.Run(ctx, 1) }, nil
	})
}

func newRootCAPublisher(_ context.Context, s *set) (loop, error) {
	core := s.Informers.Core().V1()
	return s.ofRootCA(func(ca []byte) (loop, error) {
		c, err := rootcacertpublisher.NewPublisher(core.ConfigMaps(), core.Namespaces(), s.client, ca)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) { c.Run(ctx, 1) }, nil
	})
}

func newTrustBundlePublisher(_ context.Context, s *set) (loop, error) {
	if ok, err := servesTrustBundles(s.client); err != nil || !ok {
		return nil, err
	}
	return s.ofRootCA(func(bundle []byte) (loop, error) {
		ca, err := dynamiccertificates.NewStaticCAContent("kube-apiserver-serving", bundle)
		if err != nil {
			return nil, fmt.Errorf("the root CA: %w", err)
		}
		c, err := clustertrustbundlepublisher.NewGAClusterTrustBundlePublisher("kubernetes.io/kube-apiserver-serving", ca, s.client)
		if err != nil {
			return nil, err
		}
		return c.Run, nil
	})
}

// ofRootCA is the loop of a controller that upstream makes for one root CA: it
// is made anew when that is renewed. What the one before has registered with
// informers stays there, asleep: that is once in eight years.
func (s *set) ofRootCA(build func(ca []byte) (loop, error)) (loop, error) {
	renewed := s.RootCA.Renewed()
	run, err := build(s.RootCA.CABundlePEM())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		for {
			until(ctx, renewed, run)
			if ctx.Err() != nil {
				return
			}
			renewed = s.RootCA.Renewed()
			s.Making.Lock()
			next, err := build(s.RootCA.CABundlePEM())
			s.Making.Unlock()
			if err != nil {
				s.Log.Error("a renewed root CA isn't told of until the next start", "err", err)
				continue
			}
			run = next
		}
	}, nil
}

func servesTrustBundles(client kubernetes.Interface) (bool, error) {
	list, err := client.Discovery().ServerResourcesForGroupVersion(certificates.SchemeGroupVersion.String())
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking the API whether it serves ClusterTrustBundles: %w", err)
	}
	for _, r := range list.APIResources {
		if r.Name == "clustertrustbundles" {
			return true, nil
		}
	}
	return false, nil
}

func newClusterRoleAggregation(_ context.Context, s *set) (loop, error) {
	c := clusterroleaggregation.NewClusterRoleAggregation(s.Informers.Rbac().V1().ClusterRoles(), s.client.RbacV1())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newCSRSigning(ctx context.Context, s *set) (loop, error) {
	if s.SigningCert == "" || s.SigningKey == "" {
		return nil, nil
	}
	requests := s.Informers.Certificates().V1().CertificateSigningRequests()
	var loops []loop
	for _, signs := range []func(context.Context, kubernetes.Interface, certificatesinformers.CertificateSigningRequestInformer, string, string, time.Duration) (*signer.CSRSigningController, error){
		signer.NewKubeletServingCSRSigningController,
		signer.NewKubeletClientCSRSigningController,
		signer.NewKubeAPIServerClientCSRSigningController,
		signer.NewLegacyUnknownCSRSigningController,
	} {
		c, err := signs(ctx, s.client, requests, s.SigningCert, s.SigningKey, signedFor)
		if err != nil {
			return nil, fmt.Errorf("the signing authority: %w", err)
		}
		loops = append(loops, func(ctx context.Context) { c.Run(ctx, 1) })
	}
	return together(loops...), nil
}

func newCSRApproving(ctx context.Context, s *set) (loop, error) {
	c := approver.NewCSRApprovingController(ctx, s.client, s.Informers.Certificates().V1().CertificateSigningRequests())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func newCSRCleaner(_ context.Context, s *set) (loop, error) {
	c := cleaner.NewCSRCleanerController(s.client.CertificatesV1().CertificateSigningRequests(), s.Informers.Certificates().V1().CertificateSigningRequests())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}
