package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of the store as it was when asked for. It is shared:
// callers must not change what its fields refer to.
type Image struct {
	// ID is the digest of the image's configuration, "sha256:…".
	ID string
	// RepoTags and RepoDigests are the names the image has, fully qualified
	// and sorted: "docker.io/library/busybox:latest" and
	// "docker.io/library/busybox@sha256:…".
	RepoTags, RepoDigests []string
	// Size is the sum of the image's blobs in bytes, compressed as they were
	// pulled.
	Size int64
	// Pinned images are kept by Prune, and kubelets leave them alone.
	Pinned bool
	// Manifest is the digest of the manifest for the image's platform.
	Manifest  digest.Digest
	mediaType string // of the manifest
	// Added is when the image got its first name here.
	Added time.Time
	// Spec is the configuration: platform, entry point, environment, volumes,
	// stop signal, history.
	Spec ocispec.Image
}

// A name of an image is a record in containerd's image store. Its labels hold
// what is needed to answer without reading blobs.
const (
	labelConfig   = "unipod.dev/config"
	labelManifest = "unipod.dev/manifest"
	labelType     = "unipod.dev/manifest-type"
	labelChain    = "unipod.dev/chain"
	labelSize     = "unipod.dev/size"
	// labelAsked marks the names someone asked for. The digest name that
	// accompanies a tag lacks it: when the tag moves on, the image dangles.
	labelAsked = "unipod.dev/asked"
)

type record struct {
	name     string
	target   ocispec.Descriptor
	config   digest.Digest
	manifest digest.Digest
	typ      string // media type of the manifest
	chain    string // chain ID of the top layer, "" for an image without layers
	size     int64
	asked    bool
	added    time.Time
}

func (r record) image() images.Image {
	l := map[string]string{
		labelConfig:   r.config.String(),
		labelManifest: r.manifest.String(),
		labelType:     r.typ,
		labelChain:    r.chain,
		labelSize:     strconv.FormatInt(r.size, 10),
	}
	if r.asked {
		l[labelAsked] = "true"
	}
	return images.Image{Name: r.name, Target: r.target, Labels: l}
}

func recordOf(i images.Image) (record, error) {
	r := record{
		name:     i.Name,
		target:   i.Target,
		config:   digest.Digest(i.Labels[labelConfig]),
		manifest: digest.Digest(i.Labels[labelManifest]),
		typ:      i.Labels[labelType],
		chain:    i.Labels[labelChain],
		asked:    i.Labels[labelAsked] == "true",
		added:    i.CreatedAt,
	}
	if err := r.config.Validate(); err != nil {
		return r, fmt.Errorf("image record %q: label %s: %w", i.Name, labelConfig, err)
	}
	var err error
	if r.size, err = strconv.ParseInt(i.Labels[labelSize], 10, 64); err != nil {
		return r, fmt.Errorf("image record %q: label %s: %w", i.Name, labelSize, err)
	}
	return r, nil
}

// index is the image records in memory, guarded by Store.mu.
type index struct {
	names map[string]record
	ids   map[digest.Digest]map[string]bool // the names of an image
	specs map[digest.Digest]*ocispec.Image
}

func (s *Store) loadIndex(ctx context.Context) error {
	all, err := s.images.List(ctx)
	if err != nil {
		return err
	}
	s.index = index{
		names: make(map[string]record, len(all)),
		ids:   make(map[digest.Digest]map[string]bool, len(all)),
		specs: make(map[digest.Digest]*ocispec.Image),
	}
	for _, i := range all {
		r, err := recordOf(i)
		if err != nil {
			return err
		}
		s.index.add(r)
	}
	return nil
}

func (x *index) add(r record) {
	x.drop(r.name)
	x.names[r.name] = r
	if x.ids[r.config] == nil {
		x.ids[r.config] = make(map[string]bool)
	}
	x.ids[r.config][r.name] = true
}

func (x *index) drop(name string) {
	r, ok := x.names[name]
	if !ok {
		return
	}
	delete(x.names, name)
	delete(x.ids[r.config], name)
	if len(x.ids[r.config]) == 0 {
		delete(x.ids, r.config)
		delete(x.specs, r.config)
	}
}

// records of an image, sorted by name.
func (x *index) records(id digest.Digest) []record {
	var rs []record
	for _, n := range slices.Sorted(maps.Keys(x.ids[id])) {
		rs = append(rs, x.names[n])
	}
	return rs
}

// find resolves a name or an ID (whole, or a prefix that is unique) to the ID
// of an image and, if it was a name, the record of that name.
func (x *index) find(ref string) (digest.Digest, *record, error) {
	named, nameErr := normalize(ref)
	if nameErr == nil {
		if r, ok := x.names[named.String()]; ok {
			return r.config, &r, nil
		}
	}
	if hexID.MatchString(ref) {
		prefix := "sha256:" + strings.TrimPrefix(ref, "sha256:")
		var found []digest.Digest
		for id := range x.ids {
			if strings.HasPrefix(id.String(), prefix) {
				found = append(found, id)
			}
		}
		switch len(found) {
		case 1:
			return found[0], nil, nil
		case 0:
		default:
			return "", nil, fmt.Errorf("image ID %q is ambiguous: %d images begin with it: %w", ref, len(found), errdefs.ErrInvalidArgument)
		}
	} else if nameErr != nil {
		return "", nil, nameErr
	}
	return "", nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}

// Get returns the image that refOrID names: a reference, an image ID or a
// unique prefix of one. errdefs.ErrNotFound if there is none.
func (s *Store) Get(ctx context.Context, refOrID string) (*Image, error) {
	s.mu.RLock()
	id, _, err := s.index.find(refOrID)
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	return s.get(ctx, id)
}

// List returns all images, sorted by their first name.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	s.mu.RLock()
	ids := slices.Collect(maps.Keys(s.index.ids))
	s.mu.RUnlock()
	list := make([]*Image, 0, len(ids))
	for _, id := range ids {
		i, err := s.get(ctx, id)
		if errdefs.IsNotFound(err) {
			continue // removed in between
		}
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b *Image) int {
		return cmp.Or(cmp.Compare(a.firstName(), b.firstName()), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

func (i *Image) firstName() string {
	for _, names := range [][]string{i.RepoTags, i.RepoDigests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return "~" // nameless images come last
}

func (s *Store) get(ctx context.Context, id digest.Digest) (*Image, error) {
	s.mu.RLock()
	rs := s.index.records(id)
	spec := s.index.specs[id]
	s.mu.RUnlock()
	if len(rs) == 0 {
		return nil, fmt.Errorf("image %s: %w", id, errdefs.ErrNotFound)
	}
	if spec == nil {
		var err error
		if spec, err = s.readSpec(ctx, id); err != nil {
			return nil, err
		}
		s.mu.Lock()
		if s.index.ids[id] != nil {
			s.index.specs[id] = spec
		}
		s.mu.Unlock()
	}
	img := &Image{ID: id.String(), Size: rs[0].size, Manifest: rs[0].manifest, mediaType: rs[0].typ, Spec: *spec}
	for _, r := range rs {
		if img.Added.IsZero() || r.added.Before(img.Added) {
			img.Added = r.added
		}
		img.Pinned = img.Pinned || s.pinned[r.name]
		switch n, err := reference.ParseNormalizedNamed(r.name); {
		case r.name == img.ID || err != nil: // the record of a nameless image
		case isDigested(n):
			img.RepoDigests = append(img.RepoDigests, r.name)
		default:
			img.RepoTags = append(img.RepoTags, r.name)
		}
	}
	return img, nil
}

func isDigested(n reference.Named) bool {
	_, ok := n.(reference.Digested)
	return ok
}

func (s *Store) readSpec(ctx context.Context, id digest.Digest) (*ocispec.Image, error) {
	b, err := content.ReadBlob(scope(ctx), s.content, ocispec.Descriptor{Digest: id})
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of image %s: %w", id, err)
	}
	var spec ocispec.Image
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("configuration of image %s: %w", id, err)
	}
	return &spec, nil
}
