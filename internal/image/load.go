package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// LoadOptions modify a load.
type LoadOptions struct {
	// Name is given to the image if the archive holds just one without a name.
	Name string
	// Progress as in PullOptions, per image of the archive.
	Progress func(Progress)
}

// LoadFile is Load for a path: an archive, or a directory in the OCI image
// layout.
func (s *Store) LoadFile(ctx context.Context, path string, opts LoadOptions) ([]*Image, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("loading images: %w", err)
	}
	if !fi.IsDir() {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("loading images: %w", err)
		}
		defer f.Close()
		return s.Load(ctx, f, opts)
	}
	return s.load(ctx, opts, func(ctx context.Context) (ocispec.Descriptor, error) {
		desc, err := importLayout(ctx, s.content, path)
		return desc, archiveFault(err)
	})
}

// Load stores the images of an archive (of docker save, or an OCI layout as a
// tar; plain, gzip or zstd) that suit the store's platform. Images without a
// name get none. It returns the loaded images in the archive's order.
func (s *Store) Load(ctx context.Context, r io.Reader, opts LoadOptions) ([]*Image, error) {
	return s.load(ctx, opts, func(ctx context.Context) (ocispec.Descriptor, error) {
		plain, err := decompress(contextReader{ctx, r})
		if err != nil {
			return ocispec.Descriptor{}, archiveFault(err)
		}
		defer plain.Close()
		desc, err := archive.ImportIndex(ctx, s.content, plain)
		return desc, archiveFault(err)
	})
}

// archiveFault blames the archive for errors that are of no other kind.
func archiveFault(err error) error {
	if err == nil || kindOf(err) != errdefs.ErrUnknown {
		return err
	}
	return &Error{text: fmt.Sprintf("not a valid image archive: %v", err), kind: errdefs.ErrInvalidArgument, err: err}
}

func (s *Store) load(ctx context.Context, opts LoadOptions, read func(context.Context) (ocispec.Descriptor, error)) (_ []*Image, err error) {
	var asked reference.Named
	if opts.Name != "" {
		if asked, err = normalize(opts.Name); err != nil {
			return nil, err
		}
	}
	// Blobs on their way in are known by their names in the archive, which
	// another archive may use for something else.
	if err := s.loads.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer s.loads.Release(1)
	ctx, release, err := s.lease(scope(ctx))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = &Error{text: fmt.Sprintf("failed to load images: %v", err), kind: kindOf(err), err: err}
		}
		// What the archive held besides the images is garbage in any case.
		if rerr := release(); rerr != nil {
			s.log.Warn("cleaning up after a load failed; it will be tried again", "error", rerr)
		}
	}()
	idxDesc, err := read(ctx)
	if err != nil {
		return nil, err
	}
	src := &source{}
	raw, err := s.document(ctx, src, idxDesc)
	if err != nil {
		return nil, err
	}
	var idx ocispec.Index
	if err := decode(idxDesc, raw, &idx); err != nil {
		return nil, err
	}
	if len(idx.Manifests) == 0 {
		return nil, fmt.Errorf("the archive holds no image: %w", errdefs.ErrInvalidArgument)
	}
	var loaded []*Image
	var skipped error
	for _, m := range idx.Manifests {
		img, err := s.loadOne(ctx, src, m, asked, len(idx.Manifests) == 1, opts)
		if errors.Is(err, errPlatform) {
			skipped = errors.Join(skipped, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if n := len(loaded); n > 0 && loaded[n-1].ID == img.ID {
			loaded[n-1] = img // one more name of the same
			continue
		}
		loaded = append(loaded, img)
	}
	if len(loaded) == 0 {
		return nil, skipped
	}
	return loaded, nil
}

func (s *Store) loadOne(ctx context.Context, src *source, m ocispec.Descriptor, asked reference.Named, only bool, opts LoadOptions) (*Image, error) {
	if !images.IsManifestType(m.MediaType) && !images.IsIndexType(m.MediaType) {
		return nil, fmt.Errorf("%s has media type %q, which is no container image: %w", m.Digest, m.MediaType, errdefs.ErrInvalidArgument)
	}
	var names []reference.Named
	if n := archivedName(m); n != nil {
		names = append(names, n)
	} else if asked != nil && only {
		names = append(names, asked)
	}
	title := m.Digest.String()
	if len(names) > 0 {
		title = names[0].String()
	}
	t := newTracker(title, s.cfg.Clock.Now)
	defer t.watch(opts.Progress)()
	m.Annotations = nil
	c, err := s.fetchTree(ctx, src, m, s.platform)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", title, err)
	}
	if err := s.materialize(ctx, src, c, t); err != nil {
		return nil, fmt.Errorf("image %s: %w", title, err)
	}
	if _, err := s.record(ctx, c.record(), false, names...); err != nil {
		return nil, err
	}
	t.phase(Complete)
	return s.get(ctx, c.config.Digest)
}

// archivedName is the name an archive gives an image, nil if it has none. The
// OCI annotation may be a tag without a repository, which is no name.
func archivedName(m ocispec.Descriptor) reference.Named {
	name := m.Annotations[images.AnnotationImageName]
	if name == "" {
		name = m.Annotations[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, ":/@") {
			return nil
		}
	}
	n, err := normalize(name)
	if err != nil {
		return nil
	}
	return n
}

// importLayout stores the blobs that the index of an OCI image layout refers
// to and returns the index. What is not there is left out: the images that
// need it will say so.
func importLayout(ctx context.Context, cs content.Store, dir string) (ocispec.Descriptor, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer root.Close()
	raw, err := readSmall(root, ocispec.ImageIndexFile)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%s is no OCI image layout: %w", dir, err)
	}
	idx := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Size: int64(len(raw)), Digest: digest.FromBytes(raw)}
	if err := content.WriteBlob(ctx, cs, "layout-index-"+idx.Digest.String(), bytes.NewReader(raw), idx); err != nil {
		return idx, err
	}
	return idx, importChildren(ctx, cs, root, idx, 0)
}

func importChildren(ctx context.Context, cs content.Store, root *os.Root, parent ocispec.Descriptor, depth int) error {
	if depth > 5 {
		return fmt.Errorf("indexes are nested too deeply: %w", errdefs.ErrInvalidArgument)
	}
	children, err := images.Children(ctx, cs, parent)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := c.Digest.Validate(); err != nil {
			return fmt.Errorf("digest %q: %w", c.Digest, err)
		}
		f, err := root.Open(filepath.Join(ocispec.ImageBlobsDir, c.Digest.Algorithm().String(), c.Digest.Encoded()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = content.WriteBlob(ctx, cs, "layout-"+c.Digest.String(), contextReader{ctx, f}, c)
		f.Close()
		if err != nil {
			return fmt.Errorf("blob %s: %w", c.Digest, err)
		}
		if err := importChildren(ctx, cs, root, c, depth+1); err != nil {
			return err
		}
	}
	return nil
}
