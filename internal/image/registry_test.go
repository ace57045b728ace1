package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullErrors(t *testing.T) {
	good := func(t *testing.T) *built { return build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...) }
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T, f *fake) string
		kind  error
		words []string
	}{
		{"image does not exist", func(t *testing.T, f *fake) string { return f.addr() + "/no/such:v1" },
			errdefs.ErrNotFound, []string{`failed to pull and unpack image "127.0.0.1`, `failed to resolve reference "127.0.0.1`, "not found"}},
		{"invalid reference", func(t *testing.T, f *fake) string { return "Not A Reference" },
			errdefs.ErrInvalidArgument, []string{`couldn't parse image name "Not A Reference"`}},
		{"nothing listens", func(t *testing.T, f *fake) string { return freePort(t) + "/a:b" },
			errdefs.ErrUnavailable, []string{"connection refused"}},
		{"unauthorized", func(t *testing.T, f *fake) string {
			f.hook = func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
				http.Error(w, "", http.StatusUnauthorized)
				return true
			}
			return f.add("a", "b", good(t))
		}, errdefs.ErrUnauthenticated, []string{"pull access denied", "may require authorization"}},
		{"forbidden", func(t *testing.T, f *fake) string {
			f.hook = func(w http.ResponseWriter, r *http.Request) bool {
				http.Error(w, "", http.StatusForbidden)
				return true
			}
			return f.add("a", "b", good(t))
		}, errdefs.ErrPermissionDenied, []string{"403"}},
		{"server error", func(t *testing.T, f *fake) string {
			f.hook = func(w http.ResponseWriter, r *http.Request) bool {
				http.Error(w, "", http.StatusInternalServerError)
				return true
			}
			return f.add("a", "b", good(t))
		}, errdefs.ErrUnavailable, []string{"500"}},
		{"layer missing", func(t *testing.T, f *fake) string {
			b := good(t)
			ref := f.add("a", "b", b)
			delete(f.blobs, b.layers[1].Digest)
			return ref
		}, errdefs.ErrNotFound, []string{"failed to pull layer"}},
		{"layer corrupt", func(t *testing.T, f *fake) string {
			b := good(t)
			ref := f.add("a", "b", b)
			bad := bytes.Clone(f.blobs[b.layers[0].Digest])
			bad[len(bad)/2] ^= 1
			f.blobs[b.layers[0].Digest] = bad
			return ref
		}, errdefs.ErrFailedPrecondition, []string{"failed to pull layer", "unexpected commit digest"}},
		{"layer shorter than announced", func(t *testing.T, f *fake) string {
			b := good(t)
			ref := f.add("a", "b", b)
			f.blobs[b.layers[0].Digest] = f.blobs[b.layers[0].Digest][:50]
			return ref
		}, errdefs.ErrUnknown, []string{"failed to pull layer"}},
		{"layer is not what the configuration says", func(t *testing.T, f *fake) string {
			b := good(t)
			var img ocispec.Image
			mustUnmarshal(t, b.config, &img)
			img.RootFS.DiffIDs[1] = digest.FromString("else")
			b.finish(t, img)
			return f.add("a", "b", b)
		}, errdefs.ErrDataLoss, []string{"failed to extract layer", "wrong diff id"}},
		{"layer leads out", func(t *testing.T, f *fake) string {
			return f.add("a", "b", build(t, gz, ocispec.ImageConfig{}, layerTar(t, file("../../etc/cron.d/x", "evil"))))
		}, errdefs.ErrInvalidArgument, []string{"failed to extract layer", `"../../etc/cron.d/x" leads out of the root file system`}},
		{"layer is no tar", func(t *testing.T, f *fake) string {
			return f.add("a", "b", build(t, gz, ocispec.ImageConfig{}, bytes.Repeat([]byte("garbage "), 1000)))
		}, errdefs.ErrInvalidArgument, []string{"failed to extract layer", "not a valid archive"}},
		{"layer is no gzip", func(t *testing.T, f *fake) string {
			b := good(t)
			raw := append([]byte{0x1f, 0x8b, 8, 0}, bytes.Repeat([]byte("x"), 500)...)
			d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
			b.layers[1], b.blobs[d.Digest] = d, raw
			var img ocispec.Image
			mustUnmarshal(t, b.config, &img)
			b.finish(t, img)
			return f.add("a", "b", b)
		}, errdefs.ErrInvalidArgument, []string{"failed to extract layer"}},
		{"fewer layers than diff IDs", func(t *testing.T, f *fake) string {
			b := good(t)
			b.layers = b.layers[:1]
			var img ocispec.Image
			mustUnmarshal(t, b.config, &img)
			b.finish(t, img)
			return f.add("a", "b", b)
		}, errdefs.ErrInvalidArgument, []string{"1 layers but 2 diff IDs"}},
		{"other platform", func(t *testing.T, f *fake) string {
			b := good(t)
			var img ocispec.Image
			mustUnmarshal(t, b.config, &img)
			img.Architecture = "s390x"
			b.finish(t, img)
			return f.add("a", "b", b)
		}, errdefs.ErrNotFound, []string{"no match for platform in manifest", "linux/s390x"}},
		{"artifact that is no image", func(t *testing.T, f *fake) string {
			b := good(t)
			m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON, Layers: b.layers}
			m.SchemaVersion = 2
			raw := mustJSON(t, m)
			f.add("a", "x", b)
			f.blobs[ocispec.DescriptorEmptyJSON.Digest] = []byte("{}")
			f.addManifest("a", "b", ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw)}, raw)
			return f.addr() + "/a:b"
		}, errdefs.ErrInvalidArgument, []string{"no container image"}},
		{"schema 1", func(t *testing.T, f *fake) string {
			raw := []byte(`{"schemaVersion":1,"name":"a","tag":"b"}`)
			f.addManifest("a", "b", ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema1Manifest, Digest: digest.FromBytes(raw)}, raw)
			return f.addr() + "/a:b"
		}, errdefs.ErrInvalidArgument, []string{"schema 1"}},
		{"index that contains itself for ever", func(t *testing.T, f *fake) string {
			var d ocispec.Descriptor
			for range 10 {
				idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
				idx.SchemaVersion = 2
				if d.Digest != "" {
					idx.Manifests = []ocispec.Descriptor{d}
				}
				raw := mustJSON(t, idx)
				d = ocispec.Descriptor{MediaType: idx.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
				f.addManifest("a", "b", d, raw)
			}
			return f.addr() + "/a:b"
		}, errdefs.ErrInvalidArgument, []string{"nested too deeply"}},
		{"silent before the answer", func(t *testing.T, f *fake) string {
			f.hook = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
			return f.add("a", "b", good(t))
		}, context.DeadlineExceeded, []string{"sent nothing for 200ms"}},
		{"silent in the middle of a layer", func(t *testing.T, f *fake) string {
			b := good(t)
			f.hook = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, b.layers[0].Digest.String()) {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(b.layers[0].Size))
				w.Write(f.blobs[b.layers[0].Digest][:20])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return true
			}
			return f.add("a", "b", b)
		}, context.DeadlineExceeded, []string{"failed to pull layer", "sent nothing for 200ms"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			ref := tc.setup(t, f)
			cfg := testConfig(t)
			cfg.StallTimeout = 200 * time.Millisecond
			s := openStore(t, cfg)
			_, err := s.Pull(context.Background(), ref, PullOptions{})
			wantErr(t, err, tc.kind, tc.words...)
			t.Log(err)
			empty(t, s)
			if list, err := s.List(context.Background()); err != nil || len(list) > 0 {
				t.Errorf("list: %v %v", list, err)
			}
		})
	}
}

// TestHangingSocket pulls from a port that accepts and says nothing, not even
// TLS.
func TestHangingSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig(t)
	cfg.StallTimeout = 100 * time.Millisecond
	s := openStore(t, cfg)
	_, err = s.Pull(context.Background(), l.Addr().String()+"/a:b", PullOptions{})
	wantErr(t, err, context.DeadlineExceeded, "sent nothing for 100ms")
}

func TestPullDeadline(t *testing.T) {
	f := newFake(t)
	f.hook = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	s := openStore(t, testConfig(t))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Pull(ctx, f.addr()+"/a:b", PullOptions{})
	wantErr(t, err, context.DeadlineExceeded, "deadline exceeded")
	empty(t, s)
}

// TestResume breaks the connection again and again; the pull gets the rest
// each time and never the same byte twice.
func TestResume(t *testing.T) {
	f := newFake(t)
	b := build(t, plain, ocispec.ImageConfig{}, layerTar(t, file("big", strings.Repeat("0123456789", 100_000))))
	var sent atomic.Int64
	var breaks atomic.Int64
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, b.layers[0].Digest.String()) {
			return false
		}
		data := f.blobs[b.layers[0].Digest]
		var off int64
		if rng := r.Header.Get("Range"); rng != "" {
			fmt.Sscanf(rng, "bytes=%d-", &off)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(data)-1, len(data)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(int64(len(data))-off))
		if off > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		n, _ := w.Write(data[off:min(off+200_000, int64(len(data)))])
		sent.Add(int64(n))
		if off+int64(n) < int64(len(data)) {
			breaks.Add(1)
			w.(http.Flusher).Flush()
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				c.(*net.TCPConn).SetLinger(0) // a reset, not an end
				c.Close()
			}
		}
		return true
	}
	s := openStore(t, testConfig(t))
	if _, err := s.Pull(context.Background(), f.add("a", "b", b), PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if breaks.Load() < 4 {
		t.Errorf("the connection broke %d times", breaks.Load())
	}
	// What a reset threw away in flight is sent again; whole blobs are not.
	if sent.Load() > 3*b.layers[0].Size {
		t.Errorf("%d bytes sent for a blob of %d", sent.Load(), b.layers[0].Size)
	}
}

func TestSingleFlight(t *testing.T) {
	f := newFake(t)
	b := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	gate := make(chan struct{})
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-gate
		}
		return false
	}
	ref := f.add("a", "b", b)
	s := openStore(t, testConfig(t))
	impatient, leave := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var joined atomic.Int64
	for i := range 8 {
		ctx := context.Background()
		if i%2 == 0 {
			ctx = impatient
		}
		wg.Go(func() {
			first := true
			_, err := s.Pull(ctx, ref, PullOptions{Progress: func(Progress) {
				if first {
					first = false
					joined.Add(1)
				}
			}})
			if ctx == impatient {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("impatient: %v", err)
				}
			} else if err != nil {
				t.Errorf("patient: %v", err)
			}
		})
	}
	waitFor(t, func() bool { return joined.Load() == 8 })
	leave()
	close(gate)
	wg.Wait()
	if n := f.blobGets.Load(); n != 3 {
		t.Errorf("%d blobs were fetched, want 3", n)
	}
	// When all leave, the pull ends.
	f.hook = func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	before := f.requests.Load()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { _, err := s.Pull(ctx, f.addr()+"/a:other", PullOptions{}); done <- err }()
	waitFor(t, func() bool { return f.requests.Load() > before })
	cancel()
	wantErr(t, <-done, context.Canceled)
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for range 2000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("waited in vain")
}

// TestSharedLayers pulls several images that share layers at the same time.
func TestSharedLayers(t *testing.T) {
	f := newFake(t)
	base := twoLayers(t)
	var refs []string
	for i := range 6 {
		layers := append(append([][]byte{}, base...), layerTar(t, file("own", fmt.Sprint(i))))
		refs = append(refs, f.add("img", fmt.Sprint("v", i), build(t, gz, ocispec.ImageConfig{}, layers...)))
	}
	s := openStore(t, testConfig(t))
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	snaps, err := filepath.Glob(filepath.Join(s.cfg.Root, "overlayfs/snapshots/*"))
	if err != nil || len(snaps) != 2+6 {
		t.Errorf("%d snapshots, want 8: %v", len(snaps), err)
	}
	for i, ref := range refs {
		dirs, err := s.Layers(context.Background(), ref, fmt.Sprint("c", i))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dirs[0], "own")); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("%s: %q %v", ref, got, err)
		}
	}
}

// TestBlobInOtherPlaces has one blob as several layers: in one image, and in
// another on top of something else, where it must be unpacked again without
// being downloaded.
func TestBlobInOtherPlaces(t *testing.T) {
	ctx := context.Background()
	f := newFake(t)
	shared, other := layerTar(t, file("shared", "s")), layerTar(t, file("other", "o"))
	s := openStore(t, testConfig(t))
	for i, layers := range [][][]byte{{shared, shared, other, shared}, {other, shared}, {shared}} {
		b := build(t, gz, ocispec.ImageConfig{}, layers...)
		img, err := s.Pull(ctx, f.add("a", fmt.Sprint(i), b), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		dirs, err := s.Layers(ctx, img.ID, fmt.Sprint("c", i))
		if err != nil || len(dirs) != len(layers) {
			t.Fatal(dirs, err)
		}
		for j, d := range dirs {
			name := "shared"
			if bytes.Equal(layers[len(layers)-1-j], other) {
				name = "other"
			}
			if got, err := os.ReadFile(filepath.Join(d, name)); err != nil || string(got) != name[:1] {
				t.Errorf("image %d, layer %s: %q %v", i, d, got, err)
			}
		}
	}
	if n := f.blobGets.Load(); n != 2+3 {
		t.Errorf("%d blobs were fetched, want 2 layers and 3 configurations", n)
	}
}

func TestTooManyLayers(t *testing.T) {
	f := newFake(t)
	l := layerTar(t, file("f", ""))
	layers := make([][]byte, maxLayers+1)
	for i := range layers {
		layers[i] = l
	}
	s := openStore(t, testConfig(t))
	_, err := s.Pull(context.Background(), f.add("a", "b", build(t, plain, ocispec.ImageConfig{}, layers...)), PullOptions{})
	wantErr(t, err, errdefs.ErrInvalidArgument, "481 layers")
}

func TestMultiArchAndDigest(t *testing.T) {
	f := newFake(t)
	var idx ocispec.Index
	idx.SchemaVersion, idx.MediaType = 2, ocispec.MediaTypeImageIndex
	byArch := map[string]*built{}
	for _, arch := range []string{"s390x", "arm64", "amd64"} {
		b := build(t, gz, ocispec.ImageConfig{}, layerTar(t, file("arch", arch)))
		var img ocispec.Image
		mustUnmarshal(t, b.config, &img)
		img.Architecture = arch
		b.finish(t, img)
		f.add("multi", arch, b)
		d := b.desc
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		idx.Manifests = append(idx.Manifests, d)
		byArch[arch] = b
	}
	idx.Manifests = append(idx.Manifests, ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("attestation"), Size: 3,
		Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
	})
	raw := mustJSON(t, idx)
	d := ocispec.Descriptor{MediaType: idx.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	f.addManifest("multi", "latest", d, raw)

	s := openStore(t, testConfig(t))
	ref := f.addr() + "/multi"
	img, err := s.Pull(context.Background(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != byArch["amd64"].configDesc.Digest.String() || img.Spec.Architecture != "amd64" {
		t.Errorf("amd64: %+v", img)
	}
	if want := ref + "@" + d.Digest.String(); len(img.RepoDigests) != 1 || img.RepoDigests[0] != want {
		t.Errorf("repo digests %v, want %s", img.RepoDigests, want)
	}
	byDigest, err := s.Pull(context.Background(), ref+":whatever@"+d.Digest.String(), PullOptions{Platform: "linux/arm64"})
	if err != nil {
		t.Fatal(err)
	}
	if byDigest.Spec.Architecture != "arm64" {
		t.Errorf("arm64: %+v", byDigest)
	}
	// The index now names both; neither may lose its blobs.
	if _, err := s.Prune(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*Image{img, byDigest} {
		if _, err := s.Layers(context.Background(), i.ID, "c"); err != nil {
			t.Error(err)
		}
	}
	_, err = s.Pull(context.Background(), ref, PullOptions{Platform: "linux/riscv64"})
	wantErr(t, err, errdefs.ErrNotFound, "no match for platform", "linux/amd64")
}
