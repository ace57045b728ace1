package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	podmanimage "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// PolicyError is the refusal of an image by the configured policy; it is
// errdefs.ErrFailedPrecondition.
type PolicyError struct {
	File string // the policy
	Err  error
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("SignatureValidationFailed: the policy %s does not allow it: %v", e.File, e.Err)
}

func (e *PolicyError) Unwrap() []error { return []error{errdefs.ErrFailedPrecondition, e.Err} }

// checkPolicy asks policy.json whether the image may be used: it may accept,
// reject, or require signatures (simple signing or sigstore) of the manifest
// for our platform. A policy that cannot be understood allows nothing.
func (s *Store) checkPolicy(ctx context.Context, named reference.Named, manifest digest.Digest, auth *Auth) error {
	file := s.cfg.PolicyFile
	if file == "" || firstExisting(file) == "" {
		return nil
	}
	policy, err := signature.NewPolicyFromFile(file)
	if err != nil {
		return &PolicyError{file, err}
	}
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return &PolicyError{file, err}
	}
	defer pc.Destroy()
	ref, err := docker.NewReference(named)
	if err != nil {
		return &PolicyError{file, err}
	}
	// Most policies can be decided by the name. Only if one looks at the
	// image's signatures are they fetched.
	p := &probe{ref: ref}
	ok, err := pc.IsRunningImageAllowed(ctx, p)
	if p.touched {
		ok, err = s.checkSignatures(ctx, pc, ref, manifest, auth)
	}
	if err == nil && !ok {
		err = errors.New("it is not allowed")
	}
	if err != nil {
		return &PolicyError{file, err}
	}
	return nil
}

func (s *Store) checkSignatures(ctx context.Context, pc *signature.PolicyContext, ref types.ImageReference, manifest digest.Digest, auth *Auth) (bool, error) {
	// Another client fetches signatures, without our eye on its progress.
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StallTimeout)
	defer cancel()
	sys := s.systemContext()
	if len(s.cfg.CertsDirs) > 0 {
		sys.DockerPerHostCertDirPath = firstExisting(s.cfg.CertsDirs...)
	}
	domain := reference.Domain(ref.DockerReference())
	if auth.usableAt(domain, domain) {
		user, pass, err := auth.secret()
		if err != nil {
			return false, err
		}
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: user, Password: pass}
		if user == "" {
			sys.DockerAuthConfig = &types.DockerAuthConfig{IdentityToken: pass}
		}
		sys.DockerBearerRegistryToken = auth.RegistryToken
	}
	is, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return false, fmt.Errorf("fetching the signatures of %s: %w", manifest, err)
	}
	defer is.Close()
	return pc.IsRunningImageAllowed(ctx, podmanimage.UnparsedInstance(is, &manifest))
}

// probe is an image that says whether it was looked at.
type probe struct {
	ref     types.ImageReference
	touched bool
}

var errTouched = errors.New("the image was looked at")

func (p *probe) Reference() types.ImageReference { return p.ref }

func (p *probe) Manifest(context.Context) ([]byte, string, error) {
	p.touched = true
	return nil, "", errTouched
}

func (p *probe) Signatures(context.Context) ([][]byte, error) {
	p.touched = true
	return nil, errTouched
}
