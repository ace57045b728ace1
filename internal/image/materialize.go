package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"unipod.dev/unipod/internal/image/unpack"
)

// layer is one layer on its way into a snapshot.
type layer struct {
	index  int
	desc   ocispec.Descriptor
	diffID digest.Digest
	chain  string // the name of its snapshot
	parent string
	key    string // of the snapshot while it is written
	dir    string
	result *unpack.Layer
}

// materialize downloads the layers of c that are missing and unpacks them, all
// at the same time. What depends on the layers below, and the snapshots, are
// done one after another at the end, after one sync for all of them.
func (s *Store) materialize(ctx context.Context, src *source, c *contents, t *tracker) (err error) {
	states := make([]LayerProgress, len(c.layers))
	for i, l := range c.layers {
		states[i] = LayerProgress{Digest: l.Digest, Status: LayerPending, Total: l.Size}
	}
	t.layers(states)

	missing, unlock, err := s.missingLayers(ctx, c)
	defer unlock()
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range missing {
			if l.result != nil {
				l.result.Close()
			}
		}
	}()
	first := len(c.layers) - len(missing) // those below have snapshots
	g, gctx := errgroup.WithContext(ctx)
	for i, d := range c.layers {
		g.Go(func() error {
			t.layer(i, LayerDownloading, 0)
			progress := func(n int64) { t.advance(i, n) }
			if i >= first {
				return s.obtain(gctx, src, missing[i-first], t, progress)
			}
			if err := s.download(gctx, src, s.content, d, progress); err != nil {
				return fmt.Errorf("failed to pull layer %s: %w", d.Digest, err)
			}
			t.layer(i, LayerExists, d.Size)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(missing) == 0 {
		return nil
	}
	t.phase(Storing)
	return s.commit(ctx, c, missing)
}

// missingLayers prepares snapshots for the layers that have none. Below the
// first of them all have one, leased so that they stay. The chains are locked
// until unlock is called: another pull waits for them rather than unpack the
// same. Locks are taken from the base up, so that no two pulls wait for each
// other.
func (s *Store) missingLayers(ctx context.Context, c *contents) (missing []*layer, unlock func(), err error) {
	var held []func()
	unlock = func() {
		for _, u := range held {
			u()
		}
	}
	lease, _ := leases.FromContext(ctx)
	// What is there once the lease holds it stays there, with all below.
	there := func(chain string) (bool, error) {
		_, err := s.snapshots.Stat(ctx, chain)
		if err == nil {
			err = s.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: chain, Type: "snapshots/" + snapshotter})
		}
		if err == nil {
			_, err = s.snapshots.Stat(ctx, chain)
		}
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
	if len(c.layers) == 0 {
		return nil, unlock, nil
	}
	if ok, err := there(c.chain()); ok || err != nil {
		return nil, unlock, err
	}
	for i, d := range c.layers {
		release, err := s.chains.lock(ctx, c.chains[i])
		if err != nil {
			return missing, unlock, err
		}
		l := &layer{index: i, desc: d, diffID: c.spec.RootFS.DiffIDs[i], chain: c.chains[i]}
		if i > 0 {
			l.parent = c.chains[i-1]
		}
		if len(missing) == 0 {
			ok, err := there(l.chain)
			if ok || err != nil {
				release()
			}
			if err != nil {
				return missing, unlock, err
			}
			if ok {
				continue
			}
		}
		held = append(held, release)
		l.key = extractPrefix(lease) + l.chain
		mounts, err := s.snapshots.Prepare(ctx, l.key, "")
		if err != nil {
			return missing, unlock, fmt.Errorf("preparing a snapshot: %w", err)
		}
		// Without a parent it is the bare directory, whichever layer it is for.
		l.dir = mounts[0].Source
		missing = append(missing, l)
	}
	return missing, unlock, nil
}

// obtain downloads a layer and unpacks it, while it comes if it does.
func (s *Store) obtain(ctx context.Context, src *source, l *layer, t *tracker, progress func(int64)) error {
	st := newStream(s.content)
	unpacked := make(chan error, 1)
	go func() {
		defer st.leave()
		unpacked <- s.unpackLayer(ctx, l, st)
	}()
	err := s.download(ctx, src, st, l.desc, progress)
	st.finish(l.desc.Size, err)
	if err != nil {
		// A blob that is not what it should be fails to unpack as well, but
		// this is why.
		<-unpacked
		return fmt.Errorf("failed to pull layer %s: %w", l.desc.Digest, err)
	}
	t.layer(l.index, LayerUnpacking, l.desc.Size)
	if err = <-unpacked; !st.complete() {
		// The error says nothing then: a decompressor that is a program does
		// not hand ours on.
		err = s.unpackStored(ctx, l, t)
	}
	if err != nil {
		return fmt.Errorf("failed to extract layer %s: %w", l.desc.Digest, err)
	}
	t.layer(l.index, LayerDone, l.desc.Size)
	return nil
}

// unpackStored unpacks a layer whose blob is in the store, from the beginning.
func (s *Store) unpackStored(ctx context.Context, l *layer, t *tracker) error {
	if err := s.unpacks.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.unpacks.Release(1)
	if l.result != nil {
		l.result.Close()
		l.result = nil
	}
	if err := removeChildren(l.dir); err != nil {
		return err
	}
	t.layer(l.index, LayerUnpacking, 0)
	blob, err := s.content.ReaderAt(ctx, l.desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	return s.unpackLayer(ctx, l, &progressReader{r: content.NewReader(blob), report: func(n int64) { t.advance(l.index, n) }})
}

// unpackLayer applies a blob to the directory of l and verifies that its
// content is what the image's configuration says.
func (s *Store) unpackLayer(ctx context.Context, l *layer, blob io.Reader) error {
	stream, err := decompress(blob)
	if err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	defer stream.Close()
	dir, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer dir.Close()

	digester := l.diffID.Algorithm().Digester()
	tee := bufio.NewReaderSize(io.TeeReader(stream, digester.Hash()), 256<<10)
	result, err := unpack.Apply(ctx, dir, tee, unpack.Options{Base: l.index == 0})
	if err != nil {
		return err
	}
	// The digests cover what follows the end of the archive, too.
	for _, r := range []io.Reader{tee, blob} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			result.Close()
			return fmt.Errorf("reading to the end: %w", err)
		}
	}
	if got := digester.Digest(); got != l.diffID {
		result.Close()
		return fmt.Errorf("wrong diff id %q calculated on extraction, the image's configuration says %q: %w", got, l.diffID, errdefs.ErrDataLoss)
	}
	l.result = result
	return nil
}

// commit completes the unpacked layers from the bottom up, syncs them and makes
// them snapshots.
func (s *Store) commit(ctx context.Context, c *contents, missing []*layer) error {
	var below []*os.File // topmost first
	defer func() {
		for _, f := range below {
			f.Close()
		}
	}()
	open := func(dir string) error {
		f, err := os.Open(dir)
		if err == nil {
			below = append([]*os.File{f}, below...)
		}
		return err
	}
	if parent := missing[0].parent; parent != "" {
		dirs, err := s.lowers(ctx, parent)
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := open(dirs[i]); err != nil {
				return err
			}
		}
	}
	for _, l := range missing {
		if err := l.result.Finish(below); err != nil {
			return fmt.Errorf("failed to extract layer %s: %w", l.desc.Digest, err)
		}
		if err := open(l.dir); err != nil {
			return err
		}
	}
	if err := syncFS(s.cfg.Root); err != nil {
		return err
	}
	for _, l := range missing {
		opts := []snapshots.Opt{snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:    l.chain,
			snapshots.LabelSnapshotDiffID: l.diffID.String(),
		})}
		if l.parent != "" {
			opts = append(opts, snapshots.WithParent(l.parent))
		}
		if err := s.snapshots.Commit(ctx, l.chain, l.key, opts...); err != nil {
			return fmt.Errorf("failed to commit snapshot of layer %s: %w", l.desc.Digest, err)
		}
	}
	return nil
}

// decompress returns the plain stream of a layer, whatever its media type
// claims: gzip (by igzip or unpigz where installed), zstd or none.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(8)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if compression.DetectCompression(magic) != compression.Zstd {
		return compression.DecompressStream(br)
	}
	// One goroutine is fastest: the layers are the parallelism.
	d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

type progressReader struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	p.report(p.n)
	return n, err
}
