package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file decides what a registry's or an archive's documents mean. It does
// no input or output.

// maxLayers is less than OVL_MAX_STACK of the kernel, 500: a container's own
// layer and others of the runtime come on top.
const maxLayers = 480

// errPlatform is an image that is for other platforms; it is NotFound, too.
var errPlatform = errors.New("no match for platform in manifest")

// contents is what an image consists of on one platform.
type contents struct {
	target   ocispec.Descriptor // what the name points to: an index or the manifest
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	layers   []ocispec.Descriptor
	spec     ocispec.Image
	chains   []string // chain ID of each layer with all below it
}

// record is what a name of the image records, but for the name.
func (c *contents) record() record {
	return record{
		target: c.target, config: c.config.Digest, manifest: c.manifest.Digest, typ: c.manifest.MediaType,
		chain: c.chain(), size: c.size(),
	}
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

// decode reads a document into v. Descriptors in it are hostile until checked.
func decode(d ocispec.Descriptor, raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("decoding %s: %v: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkDigest(in ocispec.Descriptor, d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%s refers to digest %q: %v: %w", in.Digest, d.Digest, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// decodeIndex chooses from an index.
func decodeIndex(d ocispec.Descriptor, raw []byte, p platforms.MatchComparer) (ocispec.Descriptor, error) {
	var idx ocispec.Index
	if err := decode(d, raw, &idx); err != nil {
		return ocispec.Descriptor{}, err
	}
	next, err := choose(idx.Manifests, p)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return next, checkDigest(d, next)
}

func checkManifestType(d ocispec.Descriptor) error {
	if d.MediaType == images.MediaTypeDockerSchema1Manifest {
		return fmt.Errorf("schema 1 image manifests are no longer supported, the image must be rebuilt: %w", errdefs.ErrInvalidArgument)
	}
	if !images.IsManifestType(d.MediaType) {
		return fmt.Errorf("%s has media type %q, which is no container image: %w", d.Digest, d.MediaType, errdefs.ErrInvalidArgument)
	}
	return nil
}

func decodeManifest(d ocispec.Descriptor, raw []byte) (*contents, error) {
	var m ocispec.Manifest
	if err := decode(d, raw, &m); err != nil {
		return nil, err
	}
	c := &contents{target: d, manifest: d, config: m.Config, layers: m.Layers}
	// Old registries knew no media types of configurations.
	if !images.IsConfigType(c.config.MediaType) && c.config.MediaType != docker.LegacyConfigMediaType {
		return nil, fmt.Errorf("manifest %s: its configuration has media type %q, so it is no container image: %w", d.Digest, c.config.MediaType, errdefs.ErrInvalidArgument)
	}
	if len(c.layers) > maxLayers {
		return nil, fmt.Errorf("manifest %s has %d layers, overlayfs can do with %d: %w", d.Digest, len(c.layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	if err := checkDigest(d, c.config); err != nil {
		return nil, err
	}
	for _, l := range c.layers {
		if err := checkDigest(d, l); err != nil {
			return nil, err
		}
		if !images.IsLayerType(l.MediaType) {
			return nil, fmt.Errorf("manifest %s: layer %s has unsupported media type %q: %w", d.Digest, l.Digest, l.MediaType, errdefs.ErrInvalidArgument)
		}
	}
	return c, nil
}

// decodeConfig reads the image's configuration, which must fit its manifest
// and platform p.
func (c *contents) decodeConfig(raw []byte, p platforms.Matcher) error {
	if err := decode(c.config, raw, &c.spec); err != nil {
		return err
	}
	if !suits(&c.spec, p) {
		return fmt.Errorf("%w: the image is for %s: %w", errPlatform, platforms.Format(c.spec.Platform), errdefs.ErrNotFound)
	}
	if c.spec.RootFS.Type != "layers" && c.spec.RootFS.Type != "" {
		return fmt.Errorf("configuration %s: unsupported rootfs type %q: %w", c.config.Digest, c.spec.RootFS.Type, errdefs.ErrInvalidArgument)
	}
	ids := c.spec.RootFS.DiffIDs
	if len(ids) != len(c.layers) {
		return fmt.Errorf("image has %d layers but %d diff IDs: %w", len(c.layers), len(ids), errdefs.ErrInvalidArgument)
	}
	for _, id := range ids {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("configuration %s: diff ID %q: %v: %w", c.config.Digest, id, err, errdefs.ErrInvalidArgument)
		}
	}
	for _, id := range identity.ChainIDs(slices.Clone(ids)) {
		c.chains = append(c.chains, id.String())
	}
	return nil
}

// suits says whether an image is for platform p. Hand-made images often lack a
// platform; they are taken at their word.
func suits(spec *ocispec.Image, p platforms.Matcher) bool {
	return spec.Architecture == "" || spec.OS == "" || p.Match(platforms.Normalize(spec.Platform))
}

// choose returns the manifest that suits platform p best.
func choose(all []ocispec.Descriptor, p platforms.MatchComparer) (ocispec.Descriptor, error) {
	var fit []ocispec.Descriptor
	var have []string
	for _, d := range all {
		if !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			continue
		}
		if d.Platform == nil {
			fit = append(fit, d) // judged by its configuration
			continue
		}
		if p.Match(*d.Platform) {
			fit = append(fit, d)
		} else if d.Platform.OS != "unknown" {
			have = append(have, platforms.Format(*d.Platform))
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("%w: the image is for %q: %w", errPlatform, have, errdefs.ErrNotFound)
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case a.Platform == nil:
			return 1
		case b.Platform == nil || p.Less(*a.Platform, *b.Platform):
			return -1
		case p.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return fit[0], nil
}
