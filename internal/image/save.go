package image

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format of an archive.
type Format string

const (
	// DockerArchive is what docker load reads. It is an OCI archive as well.
	DockerArchive Format = "docker-archive"
	// OCIArchive is an OCI image layout as a tar.
	OCIArchive Format = "oci-archive"
)

// Save writes images to an archive: those the references name, each with that
// name, or with all its tags if it is given by ID. Blobs are written as they
// were pulled, so that digests stay the same.
func (s *Store) Save(ctx context.Context, w io.Writer, format Format, refs ...string) error {
	ctx, release, err := s.lease(scope(ctx))
	if err != nil {
		return err
	}
	err = s.save(ctx, w, format, refs)
	// An image removed meanwhile was only waiting for us.
	if rerr := release(); rerr != nil {
		s.log.Warn("cleaning up after a save failed; it will be tried again", "error", rerr)
	}
	if err != nil {
		return &Error{text: fmt.Sprintf("failed to save images: %v", err), kind: kindOf(err), err: err}
	}
	return nil
}

func (s *Store) save(ctx context.Context, w io.Writer, format Format, refs []string) error {
	var opts []archive.ExportOpt
	switch format {
	case DockerArchive:
	case OCIArchive:
		opts = append(opts, archive.WithSkipDockerManifest())
	default:
		return fmt.Errorf("archive format %q: it must be %s or %s: %w", format, DockerArchive, OCIArchive, errdefs.ErrInvalidArgument)
	}
	if len(refs) == 0 {
		return fmt.Errorf("no image named: %w", errdefs.ErrInvalidArgument)
	}
	// An image may be named more than once, but its manifest is written once.
	var order []digest.Digest
	manifests := make(map[digest.Digest]ocispec.Descriptor)
	names := make(map[digest.Digest][]string)
	for _, ref := range refs {
		img, name, err := s.pick(ctx, ref)
		if err != nil {
			return err
		}
		if err := s.hold(ctx, img.Manifest); err != nil {
			return err
		}
		info, err := s.content.Info(ctx, img.Manifest)
		if err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
		if _, ok := manifests[img.Manifest]; !ok {
			order = append(order, img.Manifest)
		}
		manifests[img.Manifest] = ocispec.Descriptor{
			MediaType: img.mediaType, Digest: img.Manifest, Size: info.Size, Platform: &img.Spec.Platform,
		}
		names[img.Manifest] = append(names[img.Manifest], name...)
	}
	for _, d := range order {
		opts = append(opts, archive.WithManifest(manifests[d], names[d]...))
	}
	return archive.Export(ctx, s.content, contextWriter{ctx, w}, opts...)
}

// pick finds an image and the names it is saved under.
func (s *Store) pick(ctx context.Context, ref string) (*Image, []string, error) {
	s.mu.RLock()
	id, rec, err := s.index.find(ref)
	s.mu.RUnlock()
	if err != nil {
		return nil, nil, err
	}
	img, err := s.get(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if rec == nil {
		return img, img.RepoTags, nil
	}
	return img, []string{rec.name}, nil
}

// hold keeps a blob and what it refers to for the lease of ctx.
func (s *Store) hold(ctx context.Context, d digest.Digest) error {
	id, _ := leases.FromContext(ctx)
	return s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: d.String(), Type: "content"})
}
