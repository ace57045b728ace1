package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is one line of a layer's tar.
type entry struct {
	tar.Header
	data []byte
}

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, []byte(data)}
}

func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, nil}
}

func layerTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.data))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if h.PAXRecords != nil {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// built is an image made by a test.
type built struct {
	manifest, config []byte
	blobs            map[digest.Digest][]byte
	desc             ocispec.Descriptor
	configDesc       ocispec.Descriptor
	layers           []ocispec.Descriptor
}

type compressor string

const (
	plain compressor = ""
	gz    compressor = "gzip"
	zst   compressor = "zstd"
)

func (c compressor) pack(t testing.TB, b []byte) ([]byte, string) {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	media := ocispec.MediaTypeImageLayer
	switch c {
	case plain:
		return b, media
	case gz:
		w, media = gzip.NewWriter(&out), ocispec.MediaTypeImageLayerGzip
	case zst:
		zw, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w, media = zw, ocispec.MediaTypeImageLayerZstd
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), media
}

// build makes an image of layer tars.
func build(t testing.TB, c compressor, config ocispec.ImageConfig, layers ...[]byte) *built {
	t.Helper()
	b := &built{blobs: make(map[digest.Digest][]byte)}
	img := ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	for _, l := range layers {
		packed, media := c.pack(t, l)
		d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(packed), Size: int64(len(packed))}
		b.blobs[d.Digest] = packed
		b.layers = append(b.layers, d)
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(l))
	}
	b.finish(t, img)
	return b
}

func (b *built) finish(t testing.TB, img ocispec.Image) {
	t.Helper()
	b.config = mustJSON(t, img)
	b.configDesc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(b.config), Size: int64(len(b.config))}
	b.blobs[b.configDesc.Digest] = b.config
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: b.configDesc, Layers: b.layers}
	m.SchemaVersion = 2
	b.manifest = mustJSON(t, m)
	b.desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b.manifest), Size: int64(len(b.manifest))}
	b.blobs[b.desc.Digest] = b.manifest
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// layoutFiles are the files of an OCI layout with the named images.
func layoutFiles(t testing.TB, imgs map[string]*built) map[string][]byte {
	t.Helper()
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	var idx ocispec.Index
	idx.SchemaVersion = 2
	for name, b := range imgs {
		d := b.desc
		if name != "" {
			d.Annotations = map[string]string{images.AnnotationImageName: name}
		}
		idx.Manifests = append(idx.Manifests, d)
		for dg, data := range b.blobs {
			files["blobs/sha256/"+dg.Encoded()] = data
		}
	}
	files["index.json"] = mustJSON(t, idx)
	return files
}

func ociArchive(t testing.TB, imgs map[string]*built) []byte {
	t.Helper()
	var es []entry
	files := layoutFiles(t, imgs)
	for _, n := range slices.Sorted(maps.Keys(files)) {
		es = append(es, file(n, string(files[n])))
	}
	return layerTar(t, es...)
}

func dockerArchive(t testing.TB, b *built, layers [][]byte, tags ...string) []byte {
	t.Helper()
	m := []map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": []string{}}}
	es := []entry{file("config.json", string(b.config))}
	var names []string
	for i, l := range layers {
		n := fmt.Sprintf("%d/layer.tar", i)
		names = append(names, n)
		es = append(es, file(n, string(l)))
	}
	m[0]["Layers"] = names
	es = append(es, file("manifest.json", string(mustJSON(t, m))))
	return layerTar(t, es...)
}

func testConfig(t testing.TB) Config {
	t.Helper()
	d := t.TempDir()
	return Config{
		Root:           filepath.Join(d, "root"),
		Run:            filepath.Join(d, "run"),
		RegistriesConf: filepath.Join(d, "registries.conf"),
		CertsDirs:      []string{filepath.Join(d, "certs.d")},
		AuthFile:       filepath.Join(d, "auth.json"),
		PolicyFile:     filepath.Join(d, "policy.json"),
		LookasideDir:   filepath.Join(d, "registries.d"),
		Platform:       "linux/amd64",
		KeepPartial:    -1,
		Logger:         slog.New(slog.DiscardHandler),
	}
}

func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// registry is Debian's docker-registry on a free port.
type registry struct {
	addr string
	dir  string
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startRegistry runs a registry; extra is YAML appended to its http section's
// siblings.
func startRegistry(t testing.TB, httpExtra, extra string) *registry {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry (Debian package docker-registry) is not installed")
	}
	r := &registry{addr: freePort(t), dir: t.TempDir()}
	conf := filepath.Join(t.TempDir(), "config.yml")
	yml := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp:\n  addr: %s\n%s%s", r.dir, r.addr, httpExtra, extra)
	if err := os.WriteFile(conf, []byte(yml), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(bin, "serve", conf)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("registry: %s", out.String())
		}
	})
	for range 500 {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			c.Close()
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("registry does not listen: %s", out.String())
	return nil
}

// push uploads an image with the given client and base URL.
func push(t testing.TB, c *http.Client, base, user, repo, tag string, b *built) {
	t.Helper()
	do := func(method, url, ctype string, body []byte) *http.Response {
		req, err := http.NewRequest(method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if ctype != "" {
			req.Header.Set("Content-Type", ctype)
		}
		if user != "" {
			req.SetBasicAuth(user, "secret")
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode > 299 {
			msg, _ := io.ReadAll(resp.Body)
			t.Fatalf("%s %s: %s %s", method, url, resp.Status, msg)
		}
		return resp
	}
	for dg, data := range b.blobs {
		if dg == b.desc.Digest {
			continue
		}
		resp := do("POST", base+"/v2/"+repo+"/blobs/uploads/", "", nil)
		loc, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		q := loc.Query()
		q.Set("digest", dg.String())
		loc.RawQuery = q.Encode()
		do("PUT", loc.String(), "application/octet-stream", data)
	}
	do("PUT", base+"/v2/"+repo+"/manifests/"+tag, b.desc.MediaType, b.manifest)
}

func (r *registry) push(t testing.TB, repo, tag string, b *built) string {
	t.Helper()
	push(t, http.DefaultClient, "http://"+r.addr, "", repo, tag, b)
	return r.addr + "/" + repo + ":" + tag
}
