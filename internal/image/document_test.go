package image

import (
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzDocuments feeds the decoders: what they let through must be safe to use.
func FuzzDocuments(f *testing.F) {
	b := build(f, gz, ocispec.ImageConfig{}, twoLayers(f)...)
	f.Add(b.manifest, b.config)
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:x","platform":{"os":"linux","architecture":"amd64"}}]}`), []byte(`{}`))
	f.Add([]byte(`{"config":{"mediaType":"application/octet-stream","digest":"x"},"layers":[{"digest":""}]}`), []byte(`{"rootfs":{"diff_ids":["x"]}}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		p := platforms.Only(platforms.MustParse("linux/amd64"))
		d := ocispec.Descriptor{Digest: digest.FromBytes(manifest)}
		if next, err := decodeIndex(d, manifest, p); err == nil {
			gcContent("m", next)
		}
		c, err := decodeManifest(d, manifest)
		if err != nil {
			return
		}
		gcContent("config", c.config)
		for _, l := range c.layers {
			gcContent("l", l)
		}
		if c.decodeConfig(config, p) != nil {
			return
		}
		if len(c.chains) != len(c.layers) {
			t.Fatalf("%d chains, %d layers", len(c.chains), len(c.layers))
		}
		c.record().image()
	})
}
