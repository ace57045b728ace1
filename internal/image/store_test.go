package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func twoLayers(t testing.TB) [][]byte {
	return [][]byte{
		layerTar(t, dir("etc/", 0o755), file("etc/hostname", "base\n"), dir("tmp/", 0o1777), file("gone", "x")),
		layerTar(t, file("etc/hostname", "top\n"), file("tmp/new", "n"), file(".wh.gone", "")),
	}
}

func TestPullAndLayers(t *testing.T) {
	for _, c := range []compressor{plain, gz, zst} {
		t.Run("compression "+string(c), func(t *testing.T) {
			r := startRegistry(t, "", "")
			b := build(t, c, ocispec.ImageConfig{Cmd: []string{"/bin/true"}}, twoLayers(t)...)
			ref := r.push(t, "team/app", "v1", b)
			s := openStore(t, testConfig(t))
			img, err := s.Pull(context.Background(), ref, PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if img.ID != b.configDesc.Digest.String() || len(img.RepoTags) != 1 || img.RepoTags[0] != ref {
				t.Errorf("got %+v", img)
			}
			if img.Spec.Config.Cmd[0] != "/bin/true" {
				t.Errorf("config: %+v", img.Spec.Config)
			}
			dirs, err := s.Layers(context.Background(), img.ID, "c1")
			if err != nil {
				t.Fatal(err)
			}
			if len(dirs) != 2 {
				t.Fatalf("layers: %v", dirs)
			}
			got, err := os.ReadFile(filepath.Join(dirs[0], "etc/hostname"))
			if err != nil || string(got) != "top\n" {
				t.Errorf("top layer: %q, %v", got, err)
			}
			if err := s.ReleaseLayers(context.Background(), "c1"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	layers := twoLayers(t)
	b := build(t, plain, ocispec.ImageConfig{}, layers...)
	packed, _ := gz.pack(t, dockerArchive(t, b, layers, "busybox:1"))
	for name, data := range map[string][]byte{
		"docker-archive":      dockerArchive(t, b, layers, "busybox:1"),
		"docker-archive gzip": packed,
		"oci-archive":         ociArchive(t, map[string]*built{"docker.io/library/busybox:1": b}),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, testConfig(t))
			imgs, err := s.Load(context.Background(), bytes.NewReader(data), LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(imgs) != 1 || imgs[0].ID != b.configDesc.Digest.String() {
				t.Fatalf("loaded %+v", imgs)
			}
			for _, ref := range []string{"busybox:1", imgs[0].ID, imgs[0].ID[7:19]} {
				got, err := s.Get(context.Background(), ref)
				if err != nil || got.ID != imgs[0].ID {
					t.Errorf("Get(%s): %+v, %v", ref, got, err)
				}
			}
		})
	}
}
