package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Auth are credentials for the registry of the image that is pulled; they are
// never sent to another one (a mirror, say). The fields are those of the CRI.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password", used when Username is empty.
	Auth string
	// ServerAddress, when given, must be the image's registry, or the
	// credentials are not used.
	ServerAddress string
	// IdentityToken is exchanged for an access token at the registry's token
	// server (OAuth2 refresh token).
	IdentityToken string
	// RegistryToken is the bearer token to send to the registry.
	RegistryToken string
}

// PullOptions modify a pull.
type PullOptions struct {
	// Auth is preferred to the configured credentials of the registry.
	Auth *Auth
	// Platform ("linux/arm64") instead of the store's.
	Platform string
	// Progress is called with every change, never by two goroutines at once;
	// it must be quick. It is not called after Pull has returned.
	Progress func(Progress)
}

// Pull makes the image that ref names present: it asks the registry what ref
// is now, downloads what is missing, verifies and unpacks it. It returns when
// the image is safely on the disk.
//
// Without a deadline in ctx a pull may take as long as data keeps coming. A
// failed pull leaves nothing behind.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (*Image, error) {
	named, err := normalize(ref)
	if err != nil {
		return nil, err
	}
	p := s.platform
	if opts.Platform != "" {
		spec, err := platforms.Parse(opts.Platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %v: %w", opts.Platform, err, errdefs.ErrInvalidArgument)
		}
		p = platforms.Only(spec)
	}
	key := named.String() + " " + opts.Platform + " " + opts.Auth.fingerprint()
	t := newTracker(named.String(), s.cfg.Clock.Now)
	img, err := s.flights.do(ctx, key, t, opts.Progress, func(ctx context.Context, t *tracker) (*Image, error) {
		return s.pull(scope(ctx), named, opts.Auth, p, t)
	})
	if err != nil {
		return nil, pullError(named, err)
	}
	return img, nil
}

// fingerprint tells credentials apart without keeping them.
func (a *Auth) fingerprint() string {
	if a == nil {
		return ""
	}
	h := sha256.Sum256(fmt.Appendf(nil, "%q", *a))
	return hex.EncodeToString(h[:])
}

func (s *Store) pull(ctx context.Context, named reference.Named, auth *Auth, p platforms.MatchComparer, t *tracker) (_ *Image, err error) {
	ctx, release, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if rerr := release(done); rerr != nil {
			s.log.Warn("cleaning up after a pull failed; it will be tried again", "image", named.String(), "error", rerr)
		}
	}()
	src, err := s.resolve(ctx, named, auth)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve reference %q: %w", named, err)
	}
	defer src.close()
	c, err := s.fetchTree(ctx, src, src.target, p)
	if err != nil {
		return nil, err
	}
	if err := s.checkPolicy(ctx, named, c.manifest.Digest, auth); err != nil {
		return nil, err
	}
	if err := s.materialize(ctx, src, c, t); err != nil {
		return nil, err
	}
	if err := s.record(ctx, c, named); err != nil {
		return nil, err
	}
	done = true
	t.phase(Complete)
	return s.get(ctx, c.config.Digest)
}

// record gives an image its names, in one transaction.
func (s *Store) record(ctx context.Context, c *contents, names ...reference.Named) error {
	var rs []record
	add := func(name string, asked bool) {
		rs = append(rs, record{
			name: name, target: c.target, config: c.config.Digest, manifest: c.manifest.Digest, typ: c.manifest.MediaType,
			chain: c.chain(), size: c.size(), asked: asked,
		})
	}
	for _, n := range names {
		digested, err := reference.WithDigest(reference.TrimNamed(n), c.target.Digest)
		if err != nil {
			return err
		}
		if !isDigested(n) {
			add(n.String(), true)
		}
		add(digested.String(), isDigested(n))
	}
	if len(names) == 0 {
		add(c.config.Digest.String(), true)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for i := range rs {
			old, known := s.index.names[rs[i].name]
			rs[i].asked = rs[i].asked || known && old.asked
			img := rs[i].image()
			stored, err := s.images.Create(ctx, img)
			if errdefs.IsAlreadyExists(err) {
				stored, err = s.images.Update(ctx, img)
			}
			if err != nil {
				return err
			}
			rs[i].added = stored.CreatedAt
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording image %s: %w", c.config.Digest, err)
	}
	for _, r := range rs {
		s.index.add(r)
	}
	return nil
}

// contents is what an image consists of on one platform.
type contents struct {
	target   ocispec.Descriptor // what the name points to: an index or the manifest
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	layers   []ocispec.Descriptor
	spec     ocispec.Image
	chains   []string // chain ID of each layer with all below it
}

func (c *contents) chain() string {
	if len(c.chains) == 0 {
		return ""
	}
	return c.chains[len(c.chains)-1]
}

func (c *contents) size() int64 {
	n := c.manifest.Size + c.config.Size
	if c.target.Digest != c.manifest.Digest {
		n += c.target.Size
	}
	for _, l := range c.layers {
		n += l.Size
	}
	return n
}
