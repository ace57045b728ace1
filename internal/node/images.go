package node

import (
	"context"
	"io"

	"unipod.dev/unipod/internal/image"
)

// The image store's own words, for the floors that may not import it.
type (
	Image         = image.Image
	Auth          = image.Auth
	Progress      = image.Progress
	LayerProgress = image.LayerProgress
	Removed       = image.Removed
)

// PullOptions modify a pull.
type PullOptions struct {
	Auth     *Auth
	Platform string
	// Progress is called with every change, by one goroutine at a time.
	Progress func(Progress)
}

// ImageAdmin is what people do with images beyond what the CRI has.
type ImageAdmin interface {
	Pull(ctx context.Context, ref string, o PullOptions) (*Image, error)
	// Get finds by name, ID or beginning of an ID; errdefs.ErrNotFound.
	Get(ctx context.Context, refOrID string) (*Image, error)
	List(ctx context.Context) ([]*Image, error)
	// Load imports a docker-archive or OCI archive, compressed or not.
	Load(ctx context.Context, r io.Reader, name string, progress func(Progress)) ([]*Image, error)
	// LoadPath is Load of a file, or of a directory in the OCI layout. The
	// node opens it.
	LoadPath(ctx context.Context, path, name string, progress func(Progress)) ([]*Image, error)
	// Save writes images as an archive; format is docker-archive or
	// oci-archive.
	Save(ctx context.Context, w io.Writer, format string, refs ...string) error
	Remove(ctx context.Context, refOrID string) (*Removed, error)
	// Prune removes images without a name, with all those that no container
	// uses.
	Prune(ctx context.Context, all bool) (*Removed, error)
}

// localImages is the administration of a store in this process.
type localImages struct{ store *image.Store }

func (l localImages) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	return l.store.Pull(ctx, ref, image.PullOptions{Auth: o.Auth, Platform: o.Platform, Progress: o.Progress})
}

func (l localImages) Get(ctx context.Context, ref string) (*Image, error) {
	return l.store.Get(ctx, ref)
}

func (l localImages) List(ctx context.Context) ([]*Image, error) { return l.store.List(ctx) }

func (l localImages) Load(ctx context.Context, r io.Reader, name string, progress func(Progress)) ([]*Image, error) {
	return l.store.Load(ctx, r, image.LoadOptions{Name: name, Progress: progress})
}

func (l localImages) LoadPath(ctx context.Context, path, name string, progress func(Progress)) ([]*Image, error) {
	return l.store.LoadFile(ctx, path, image.LoadOptions{Name: name, Progress: progress})
}

func (l localImages) Save(ctx context.Context, w io.Writer, format string, refs ...string) error {
	return l.store.Save(ctx, w, image.Format(format), refs...)
}

func (l localImages) Remove(ctx context.Context, ref string) (*Removed, error) {
	return l.store.Remove(ctx, ref)
}

func (l localImages) Prune(ctx context.Context, all bool) (*Removed, error) {
	return l.store.Prune(ctx, all)
}
