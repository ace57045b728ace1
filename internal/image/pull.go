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
	"github.com/opencontainers/go-digest"
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
// failed pull leaves nothing behind, but for what was downloaded if the
// registry or the deadline was at fault: the next attempt within
// Config.KeepPartial goes on from there.
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
		return s.pull(scope(ctx), key, named, opts.Auth, p, t)
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

func (s *Store) pull(ctx context.Context, key string, named reference.Named, auth *Auth, p platforms.MatchComparer, t *tracker) (_ *Image, err error) {
	src, err := s.resolve(ctx, named, auth)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve reference %q: %w", named, err)
	}
	defer src.close()
	if img, err := s.upToDate(ctx, src.target, named, auth, p, t); img != nil || err != nil {
		return img, err
	}
	ctx, release, err := s.pullLease(ctx, key)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := release(err); err != nil {
			s.log.Warn("cleaning up after a pull failed; it will be tried again", "image", named.String(), "error", err)
		}
	}()
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
	if _, err := s.record(ctx, c.record(), false, named); err != nil {
		return nil, err
	}
	t.phase(Complete)
	return s.get(ctx, c.config.Digest)
}

// upToDate returns the image if all of it is there and only its names may have
// to be recorded, and nil if it has to be pulled. Pulling what one has is the
// usual case with the pull policy Always.
func (s *Store) upToDate(ctx context.Context, target ocispec.Descriptor, named reference.Named, auth *Auth, p platforms.MatchComparer, t *tracker) (*Image, error) {
	var known *Image
	var rec record
	for _, r := range s.recordsOf(target.Digest) {
		img, err := s.get(ctx, r.config)
		if err == nil && suits(&img.Spec, p) {
			known, rec = img, r
			break
		}
	}
	if known == nil {
		return nil, nil
	}
	if err := s.checkPolicy(ctx, named, rec.manifest, auth); err != nil {
		return nil, err
	}
	recorded, err := s.record(ctx, rec, true, named)
	if !recorded || err != nil {
		return nil, err
	}
	t.phase(Complete)
	return s.get(ctx, rec.config)
}

// recordsOf are the names of images that a manifest or index stands for.
func (s *Store) recordsOf(target digest.Digest) []record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var rs []record
	for _, r := range s.index.names {
		if r.target.Digest == target {
			rs = append(rs, r)
		}
	}
	return rs
}

// record gives an image its names, in one transaction. With onlyIfThere it
// does nothing, and says so, if the image has lost its last name meanwhile.
func (s *Store) record(ctx context.Context, base record, onlyIfThere bool, names ...reference.Named) (bool, error) {
	var rs []record
	add := func(name string, asked bool) {
		base.name, base.asked = name, asked
		rs = append(rs, base)
	}
	for _, n := range names {
		digested, err := reference.WithDigest(reference.TrimNamed(n), base.target.Digest)
		if err != nil {
			return false, err
		}
		if !isDigested(n) {
			add(n.String(), true)
		}
		add(digested.String(), isDigested(n))
	}
	if len(names) == 0 {
		add(base.config.String(), true)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if onlyIfThere && s.index.ids[base.config] == nil {
		return false, nil
	}
	var changed []record
	for _, r := range rs {
		old, known := s.index.names[r.name]
		same := known && old.target.Digest == r.target.Digest && old.config == r.config
		if same && (old.asked || !r.asked) {
			continue
		}
		r.asked = r.asked || known && old.asked
		changed = append(changed, r)
	}
	if len(changed) == 0 {
		return true, nil
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for i, r := range changed {
			stored, err := s.images.Create(ctx, r.image())
			if errdefs.IsAlreadyExists(err) {
				stored, err = s.images.Update(ctx, r.image())
			}
			if err != nil {
				return err
			}
			changed[i].added = stored.CreatedAt
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("recording image %s: %w", base.config, err)
	}
	for _, r := range changed {
		s.index.add(r)
	}
	return true, nil
}
