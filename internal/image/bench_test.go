package image

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// bigImage is about 200 MB in four layers: small files, programs that compress
// by half, and a few large ones.
func bigImage(t testing.TB, c compressor) *built {
	var layers [][]byte
	rnd := rand.NewChaCha8([32]byte{7})
	text := func(n int) []byte {
		b := make([]byte, n)
		rnd.Read(b)
		for i := range b { // as compressible as machine code
			if i%2 == 1 {
				b[i] &= 0x0f
			}
		}
		return b
	}
	for l := range 4 {
		var es []entry
		for d := range 40 {
			es = append(es, dir(fmt.Sprintf("usr/l%d/d%d/", l, d), 0o755))
			for f := range 50 {
				es = append(es, entry{file(fmt.Sprintf("usr/l%d/d%d/f%d", l, d, f), "").Header, text(1000 + 150*f)})
			}
		}
		for f := range 8 {
			es = append(es, entry{file(fmt.Sprintf("usr/lib/l%d-big%d.so", l, f), "").Header, text(5 << 20)})
		}
		layers = append(layers, layerTar(t, es...))
	}
	return build(t, c, ocispec.ImageConfig{}, layers...)
}

func cpuSeconds() float64 {
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
}

// BenchmarkPull is pull and unpack of a 200 MB image, synced to the disk. The
// design's figures for a like image on a like machine: podman 7.8 s (12.6 s of
// CPU), containerd 5.4 s (6.1 s), goal 2.8 s (4.9 s); zstd 2.0 s (3.3 s).
func BenchmarkPull(b *testing.B) {
	for _, c := range []compressor{gz, zst, plain} {
		b.Run("compression "+string(c), func(b *testing.B) {
			r := startRegistry(b, "", "")
			ref := r.push(b, "big", "v1", bigImage(b, c))
			dir := b.TempDir()
			var n int
			var cpu float64
			for b.Loop() {
				b.StopTimer()
				cfg := testConfig(b)
				n++
				cfg.Root = filepath.Join(dir, fmt.Sprint(n))
				s := openStore(b, cfg)
				unix.Sync()
				before := cpuSeconds()
				b.StartTimer()
				if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				cpu += cpuSeconds() - before
				// It stays until the end: ext4 is slow to reuse the inodes of
				// files just deleted.
				s.Close()
				b.StartTimer()
			}
			b.ReportMetric(cpu/float64(b.N), "cpu-s/op")
		})
	}
}

// BenchmarkOpen opens a store of 100 images of five layers that share some.
func BenchmarkOpen(b *testing.B) {
	cfg := testConfig(b)
	s := openStore(b, cfg)
	for i := range 100 {
		img := build(b, gz, ocispec.ImageConfig{},
			layerTar(b, file("base", fmt.Sprint(i%10))), layerTar(b, file("l1", fmt.Sprint(i%20))),
			layerTar(b, file("l2", fmt.Sprint(i))), layerTar(b, file("l3", fmt.Sprint(i))), layerTar(b, file("l4", fmt.Sprint(i))))
		if _, err := s.Load(context.Background(), bytes.NewReader(ociArchive(b, map[string]*built{fmt.Sprintf("docker.io/library/i%d:v1", i): img})), LoadOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
	for b.Loop() {
		s, err := Open(context.Background(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkSmallPull is a pull of an image of a few bytes: what the store
// itself costs.
func BenchmarkSmallPull(b *testing.B) {
	f := newFake(b)
	s := openStore(b, testConfig(b))
	var refs []string
	for i := range 200 {
		refs = append(refs, f.add("a", fmt.Sprint("v", i), simple(b, fmt.Sprint(i))))
	}
	var i int
	for b.Loop() {
		if _, err := s.Pull(context.Background(), refs[i%len(refs)], PullOptions{}); err != nil {
			b.Fatal(err)
		}
		if i++; i%len(refs) == 0 {
			b.StopTimer()
			if _, err := s.Prune(context.Background(), true); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}

// BenchmarkLayers is what a container's start asks of the store.
func BenchmarkLayers(b *testing.B) {
	s := openStore(b, testConfig(b))
	img := load(b, s, build(b, gz, ocispec.ImageConfig{}, twoLayers(b)...), nameA)
	for b.Loop() {
		if _, err := s.Get(context.Background(), nameA); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Layers(context.Background(), img.ID, "c"); err != nil {
			b.Fatal(err)
		}
		if err := s.ReleaseLayers(context.Background(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}
