package image

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hostconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// resolve asks the registries configured for named, in order, what it is now.
func (s *Store) resolve(ctx context.Context, named reference.Named, auth *Auth) (*source, error) {
	sources, err := s.pullSources(named)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, ps := range sources {
		src, err := s.resolveAt(ctx, named, ps, auth)
		if err == nil {
			return src, nil
		}
		if len(sources) > 1 {
			err = fmt.Errorf("%s: %w", ps.Reference, err)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	// The last is the registry of the name itself: its answer counts.
	for i, j := 0, len(errs)-1; i < j; i, j = i+1, j-1 {
		errs[i], errs[j] = errs[j], errs[i]
	}
	return nil, joined(errs)
}

// joined is one sentence of several errors; the first decides their kind.
func joined(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	var rest []string
	for _, e := range errs[1:] {
		rest = append(rest, e.Error())
	}
	return fmt.Errorf("%w (also tried: %s)", errs[0], strings.Join(rest, "; "))
}

// pullSources are the places registries.conf names for a reference: mirrors,
// then the registry itself.
func (s *Store) pullSources(named reference.Named) ([]sysregistriesv2.PullSource, error) {
	itself := []sysregistriesv2.PullSource{{Reference: named}}
	sys := s.systemContext()
	if sys.SystemRegistriesConfPath == "" {
		return itself, nil
	}
	sysregistriesv2.InvalidateCache() // an edited file counts at once
	reg, err := sysregistriesv2.FindRegistry(sys, named.Name())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sys.SystemRegistriesConfPath, err)
	}
	if reg == nil {
		return itself, nil
	}
	if reg.Blocked {
		return nil, fmt.Errorf("registry %s is blocked in %s: %w", reg.Prefix, sys.SystemRegistriesConfPath, errdefs.ErrPermissionDenied)
	}
	return reg.PullSourcesFromReference(named)
}

// systemContext tells containers' libraries where our configuration is.
func (s *Store) systemContext() *types.SystemContext {
	sys := &types.SystemContext{
		AuthFilePath:      s.cfg.AuthFile,
		RegistriesDirPath: s.cfg.LookasideDir,
	}
	if conf := firstExisting(s.cfg.RegistriesConf); s.cfg.RegistriesConf != "" && conf != "" {
		sys.SystemRegistriesConfPath = conf
		sys.SystemRegistriesConfDirPath = conf + ".d"
	}
	return sys
}

func (s *Store) resolveAt(ctx context.Context, named reference.Named, ps sysregistriesv2.PullSource, auth *Auth) (*source, error) {
	at := ps.Reference
	if ps.Endpoint.Location == "" || reference.Domain(at) == reference.Domain(named) {
		// The registry of the image itself; others never see its credentials.
	} else {
		auth = nil
	}
	src := &source{}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: s.hosts(ctx, src, at, auth, ps.Endpoint.Insecure)})
	name, desc, err := resolver.Resolve(ctx, at.String())
	if err == nil {
		src.target = desc
		src.fetcher, err = resolver.Fetcher(ctx, name)
	}
	if err != nil {
		src.close()
		return nil, err
	}
	return src, nil
}

// hosts says how to reach a registry: hosts.toml and certificates of CertsDirs,
// credentials, and limits to our patience. Its connections belong to src.
func (s *Store) hosts(ctx context.Context, src *source, ref reference.Named, auth *Auth, insecure bool) docker.RegistryHosts {
	domain := reference.Domain(ref)
	opts := hostconfig.HostOptions{
		HostDir: func(host string) (string, error) {
			for _, dir := range s.cfg.CertsDirs {
				d, err := hostconfig.HostDirFromRoot(dir)(host)
				if !errdefs.IsNotFound(err) {
					return d, err
				}
			}
			return "", errdefs.ErrNotFound
		},
		Credentials: func(host string) (string, string, error) {
			if auth.usableAt(host, domain) {
				return auth.secret()
			}
			return s.configuredCredentials(host, ref)
		},
		UpdateClient: func(c *http.Client) error {
			src.own(c.Transport)
			c.Transport = &patient{next: c.Transport, limit: s.cfg.StallTimeout}
			return nil
		},
	}
	if insecure {
		// Both a certificate that cannot be verified and plain http will do.
		opts.DefaultTLS = &tls.Config{InsecureSkipVerify: true}
		opts.DefaultScheme = "http"
	}
	return func(host string) ([]docker.RegistryHost, error) {
		// A hosts.toml that cannot be read is only logged, and then certificates
		// beside it count: not what its author wanted.
		var failures failureLog
		hs, err := hostconfig.ConfigureHosts(log.WithLogger(ctx, failures.entry()), opts)(host)
		if err = errors.Join(err, failures.err()); err != nil {
			return nil, fmt.Errorf("configuration of registry %s: %w", host, err)
		}
		for i := range hs {
			if auth.usableAt(hs[i].Host, domain) && auth.RegistryToken != "" {
				hs[i].Authorizer = bearer(auth.RegistryToken)
			}
		}
		return hs, nil
	}
}

// configuredCredentials looks a host up in auth.json, config.json and the
// credential helpers they name.
func (s *Store) configuredCredentials(host string, ref reference.Named) (string, string, error) {
	var c types.DockerAuthConfig
	var err error
	switch domain := reference.Domain(ref); {
	case sameRegistry(host, domain):
		c, err = config.GetCredentialsForRef(s.systemContext(), ref)
	default:
		c, err = config.GetCredentials(s.systemContext(), host)
	}
	if err != nil {
		return "", "", fmt.Errorf("credentials for registry %s: %w", host, err)
	}
	if c.IdentityToken != "" {
		return "", c.IdentityToken, nil
	}
	return c.Username, c.Password, nil
}

// sameRegistry says whether a host name is that of a reference's domain.
// Docker Hub's are spelt differently.
func sameRegistry(host, domain string) bool {
	hub := func(h string) string {
		switch h {
		case "registry-1.docker.io", "index.docker.io":
			return "docker.io"
		}
		return h
	}
	return hub(host) == hub(domain)
}

// usableAt says whether the credentials are for the host, given the registry
// of the image that is pulled.
func (a *Auth) usableAt(host, domain string) bool {
	if a == nil || !sameRegistry(host, domain) {
		return false
	}
	if a.ServerAddress == "" {
		return true
	}
	// Clients put anything here: "https://index.docker.io/v1/", "host:5000".
	server := a.ServerAddress
	if _, rest, ok := strings.Cut(server, "://"); ok {
		server = rest
	}
	server, _, _ = strings.Cut(server, "/")
	return sameRegistry(server, domain)
}

// secret is the user name and password, or an empty name and an identity
// token, as containerd's authorizer wants them.
func (a *Auth) secret() (string, string, error) {
	switch {
	case a.Username != "":
		return a.Username, a.Password, nil
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", "", fmt.Errorf("the image's credentials: field auth is not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, pass, ok := strings.Cut(string(raw), ":")
		if !ok {
			return "", "", fmt.Errorf("the image's credentials: field auth is not base64 of user:password: %w", errdefs.ErrInvalidArgument)
		}
		return user, strings.TrimRight(pass, "\x00"), nil
	}
	return "", "", nil
}

// bearer authorizes with a token that is not ours to renew.
type bearer string

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("the registry token is not accepted: %w", docker.ErrInvalidAuthorization)
}
