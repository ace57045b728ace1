package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds manifests, indexes and configurations, which are read
// into memory.
const maxDocument = 8 << 20

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
	// An index may point to indexes, but not for ever.
	desc := target
	for depth := 0; images.IsIndexType(desc.MediaType); depth++ {
		if depth == 4 {
			return nil, fmt.Errorf("image index %s: indexes are nested too deeply: %w", target.Digest, errdefs.ErrInvalidArgument)
		}
		raw, err := s.document(ctx, src, desc)
		if err != nil {
			return nil, err
		}
		next, err := decodeIndex(desc, raw, p)
		if err != nil {
			return nil, err
		}
		labels := map[string]string{gcContent("m", next): next.Digest.String()}
		if err := s.storeDocument(ctx, desc, raw, labels); err != nil {
			return nil, err
		}
		desc = next
	}
	if err := checkManifestType(desc); err != nil {
		return nil, err
	}
	raw, err := s.document(ctx, src, desc)
	if err != nil {
		return nil, err
	}
	c, err := decodeManifest(desc, raw)
	if err != nil {
		return nil, err
	}
	c.target = target
	labels := map[string]string{gcContent("config", c.config): c.config.Digest.String()}
	for _, l := range c.layers {
		labels[gcContent("l", l)] = l.Digest.String()
	}
	if err := s.storeDocument(ctx, desc, raw, labels); err != nil {
		return nil, err
	}
	if raw, err = s.document(ctx, src, c.config); err != nil {
		return nil, err
	}
	if err := c.decodeConfig(raw, p); err != nil {
		return nil, err
	}
	labels = map[string]string{}
	if len(c.chains) > 0 {
		labels["containerd.io/gc.ref.snapshot."+snapshotter] = c.chain()
	}
	return c, s.storeDocument(ctx, c.config, raw, labels)
}

// gcContent is the label by which a document keeps another blob.
func gcContent(kind string, d ocispec.Descriptor) string {
	return "containerd.io/gc.ref.content." + kind + "." + d.Digest.Encoded()[:12]
}

// document reads a small blob, from the store if it is there, and verifies it.
func (s *Store) document(ctx context.Context, src *source, d ocispec.Descriptor) ([]byte, error) {
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
