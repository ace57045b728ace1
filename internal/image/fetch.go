package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds manifests, indexes and configurations, which are read
// into memory.
const maxDocument = 8 << 20

// maxLayers is less than OVL_MAX_STACK of the kernel, 500: a container's own
// layer and others of the runtime come on top.
const maxLayers = 480

var errPlatform = errors.New("no match for platform in manifest")

// source is where blobs come from: a registry that resolved a reference, or
// an archive whose blobs are in the content store already (a nil fetcher).
type source struct {
	target  ocispec.Descriptor
	fetcher remotes.Fetcher

	mu         sync.Mutex
	transports []http.RoundTripper
}

func (src *source) own(t http.RoundTripper) {
	src.mu.Lock()
	defer src.mu.Unlock()
	src.transports = append(src.transports, t)
}

// close ends the connections that wait to be used again.
func (src *source) close() {
	src.mu.Lock()
	defer src.mu.Unlock()
	for _, t := range src.transports {
		(&http.Client{Transport: t}).CloseIdleConnections()
	}
}

// fetchTree finds the image of platform p below target and stores its
// manifest and configuration.
func (s *Store) fetchTree(ctx context.Context, src *source, target ocispec.Descriptor, p platforms.MatchComparer) (*contents, error) {
	c := &contents{target: target}
	// An index may point to indexes, but not for ever.
	desc := target
	for depth := 0; images.IsIndexType(desc.MediaType); depth++ {
		if depth == 4 {
			return nil, fmt.Errorf("image index %s: indexes are nested too deeply: %w", target.Digest, errdefs.ErrInvalidArgument)
		}
		var idx ocispec.Index
		raw, err := s.document(ctx, src, desc, &idx)
		if err != nil {
			return nil, err
		}
		next, err := choose(idx.Manifests, p)
		if err != nil {
			return nil, err
		}
		labels := map[string]string{gcContent("m", next): next.Digest.String()}
		if err := s.storeDocument(ctx, desc, raw, labels); err != nil {
			return nil, err
		}
		desc = next
	}
	if desc.MediaType == images.MediaTypeDockerSchema1Manifest {
		return nil, fmt.Errorf("schema 1 image manifests are no longer supported, the image must be rebuilt: %w", errdefs.ErrInvalidArgument)
	}
	if !images.IsManifestType(desc.MediaType) {
		return nil, fmt.Errorf("%s has media type %q, which is no container image: %w", desc.Digest, desc.MediaType, errdefs.ErrInvalidArgument)
	}
	c.manifest = desc
	var m ocispec.Manifest
	raw, err := s.document(ctx, src, desc, &m)
	if err != nil {
		return nil, err
	}
	c.config, c.layers = m.Config, m.Layers
	if !images.IsConfigType(c.config.MediaType) {
		return nil, fmt.Errorf("manifest %s: its configuration has media type %q, so it is no container image: %w", desc.Digest, c.config.MediaType, errdefs.ErrInvalidArgument)
	}
	if len(c.layers) > maxLayers {
		return nil, fmt.Errorf("manifest %s has %d layers, overlayfs can do with %d: %w", desc.Digest, len(c.layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	labels := map[string]string{gcContent("config", c.config): c.config.Digest.String()}
	for _, l := range c.layers {
		if !images.IsLayerType(l.MediaType) {
			return nil, fmt.Errorf("manifest %s: layer %s has unsupported media type %q: %w", desc.Digest, l.Digest, l.MediaType, errdefs.ErrInvalidArgument)
		}
		labels[gcContent("l", l)] = l.Digest.String()
	}
	if err := s.storeDocument(ctx, desc, raw, labels); err != nil {
		return nil, err
	}
	return c, s.fetchConfig(ctx, src, c, p)
}

func (s *Store) fetchConfig(ctx context.Context, src *source, c *contents, p platforms.Matcher) error {
	raw, err := s.document(ctx, src, c.config, &c.spec)
	if err != nil {
		return err
	}
	// Hand-made images often lack a platform; they are taken at their word.
	if c.spec.Architecture != "" && c.spec.OS != "" && !p.Match(platforms.Normalize(c.spec.Platform)) {
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
	labels := map[string]string{}
	if len(c.chains) > 0 {
		labels["containerd.io/gc.ref.snapshot."+snapshotter] = c.chain()
	}
	return s.storeDocument(ctx, c.config, raw, labels)
}

// gcContent is the label by which a document keeps another blob.
func gcContent(kind string, d ocispec.Descriptor) string {
	return "containerd.io/gc.ref.content." + kind + "." + d.Digest.Encoded()[:12]
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

// document reads a small blob, from the store if it is there, verifies it and
// decodes it into v.
func (s *Store) document(ctx context.Context, src *source, d ocispec.Descriptor, v any) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %v: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if d.Size <= 0 || d.Size > maxDocument {
		return nil, fmt.Errorf("%s %s of %d bytes: it must have between 1 and %d: %w", d.MediaType, d.Digest, d.Size, maxDocument, errdefs.ErrInvalidArgument)
	}
	raw, err := content.ReadBlob(ctx, s.content, d)
	if errdefs.IsNotFound(err) && src.fetcher != nil {
		raw, err = readRemote(ctx, src.fetcher, d)
	}
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", d.Digest, err)
	}
	if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
		return nil, fmt.Errorf("%s is corrupt: it has digest %s: %w", d.Digest, got, errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("decoding %s: %v: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	return raw, nil
}

func readRemote(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor) ([]byte, error) {
	rc, err := f.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(io.LimitReader(rc, d.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != d.Size {
		return nil, fmt.Errorf("got %d bytes or more of %d: %w", len(raw), d.Size, errdefs.ErrDataLoss)
	}
	return raw, nil
}

// storeDocument keeps a verified document with its labels.
func (s *Store) storeDocument(ctx context.Context, d ocispec.Descriptor, raw []byte, labels map[string]string) error {
	d.Annotations, d.URLs, d.Data = nil, nil, nil
	err := content.WriteBlob(ctx, s.content, remotes.MakeRefKey(ctx, d), bytes.NewReader(raw), d, content.WithLabels(labels))
	if err != nil {
		return fmt.Errorf("storing %s: %w", d.Digest, err)
	}
	// It may have been there before, with the labels of another platform.
	info, err := s.content.Info(ctx, d.Digest)
	if err != nil {
		return err
	}
	var paths []string
	for k, v := range labels {
		if info.Labels[k] != v {
			paths = append(paths, "labels."+k)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	_, err = s.content.Update(ctx, content.Info{Digest: d.Digest, Labels: labels}, paths...)
	return err
}

// download makes the blob of a layer present, through the ingester to. A broken
// connection is resumed where it broke, as long as that gets on.
func (s *Store) download(ctx context.Context, src *source, to content.Ingester, d ocispec.Descriptor, progress func(int64)) error {
	if src.fetcher == nil {
		_, err := s.content.Info(ctx, d.Digest)
		return err
	}
	if err := s.downloads.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.downloads.Release(1)
	const tries = 3
	f := &countingFetcher{Fetcher: src.fetcher, progress: progress}
	var last int64 = -1
	for failed := 0; ; {
		err := remotes.Fetch(ctx, to, f, d)
		if err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
		if f.offset > last {
			last, failed = f.offset, 0
		}
		if failed++; failed >= tries || ctx.Err() != nil || !transient(err) {
			return err
		}
		s.log.Debug("resuming a download", "layer", d.Digest, "offset", f.offset, "error", err)
	}
}

// transient says whether it is worth asking again for the rest.
func transient(err error) bool {
	return !errors.Is(err, errStalled) && (isNetwork(err) || errors.Is(err, io.ErrUnexpectedEOF))
}

// countingFetcher reports how far in the blob reading is.
type countingFetcher struct {
	remotes.Fetcher
	progress func(int64)
	offset   int64
}

func (f *countingFetcher) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := f.Fetcher.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	f.offset = 0
	return &countingReader{ReadCloser: rc, f: f}, nil
}

// countingReader passes Seek on, by which the content store resumes.
type countingReader struct {
	io.ReadCloser
	f *countingFetcher
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if n > 0 {
		r.f.offset += int64(n)
		r.f.progress(r.f.offset)
	}
	return n, err
}

func (r *countingReader) Seek(offset int64, whence int) (int64, error) {
	sk, ok := r.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errdefs.ErrNotImplemented
	}
	n, err := sk.Seek(offset, whence)
	if err == nil {
		r.f.offset = n
	}
	return n, err
}
