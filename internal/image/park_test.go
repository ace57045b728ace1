package image

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

// flaky serves an image whose second layer breaks off until heal is set.
func flaky(t *testing.T) (f *fake, ref string, b *built, heal *atomic.Bool, from *atomic.Int64) {
	f, heal, from = newFake(t), &atomic.Bool{}, &atomic.Int64{}
	b = build(t, plain, ocispec.ImageConfig{}, layerTar(t, file("small", "x")), layerTar(t, file("big", strings.Repeat("0123456789", 500_000))))
	ref = f.add("a", "b", b)
	d := b.layers[1].Digest
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, d.String()) {
			return false
		}
		if heal.Load() {
			var off int64
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
			from.Store(off)
			return false
		}
		if r.Header.Get("Range") != "" {
			http.Error(w, "", http.StatusServiceUnavailable)
			return true
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(f.blobs[d])))
		w.Write(f.blobs[d][:3_000_000])
		return true
	}
	return f, ref, b, heal, from
}

func TestNextAttemptResumes(t *testing.T) {
	ctx := context.Background()
	_, ref, b, heal, from := flaky(t)
	cfg := testConfig(t)
	cfg.KeepPartial = time.Hour
	s := openStore(t, cfg)
	for range 2 {
		_, err := s.Pull(ctx, ref, PullOptions{})
		wantErr(t, err, errdefs.ErrUnavailable, "failed to pull layer")
	}
	heal.Store(true)
	img, err := s.Pull(ctx, ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if from.Load() < 1_000_000 {
		t.Errorf("the third attempt began at byte %d", from.Load())
	}
	if dirs, err := s.Layers(ctx, img.ID, "c"); err != nil || len(dirs) != len(b.layers) {
		t.Errorf("%v %v", dirs, err)
	}
	if err := s.ReleaseLayers(ctx, "c"); err != nil {
		t.Error(err)
	}
	if _, err := s.Remove(ctx, ref); err != nil {
		t.Error(err)
	}
	empty(t, s)
}

func TestPartialExpires(t *testing.T) {
	_, ref, _, _, _ := flaky(t)
	cfg := testConfig(t)
	fc := clocktesting.NewFakeClock(time.Now())
	cfg.Clock, cfg.KeepPartial = fc, time.Hour
	s := openStore(t, cfg)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err == nil {
		t.Fatal("no error")
	}
	info, err := s.FsInfo(context.Background())
	if err != nil || info.UsedInodes == 0 {
		t.Errorf("nothing was kept: %+v %v", info, err)
	}
	fc.Step(2 * time.Hour)
	waitFor(t, func() bool {
		info, err := s.FsInfo(context.Background())
		return err == nil && info.UsedInodes == 0
	})
	s.work.Wait()
	empty(t, s)
}

func TestPartialEndsWithStore(t *testing.T) {
	_, ref, _, _, _ := flaky(t)
	cfg := testConfig(t)
	cfg.KeepPartial = time.Hour
	s := openStore(t, cfg)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err == nil {
		t.Fatal("no error")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	empty(t, openStore(t, cfg))
}
