package image

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func load(t testing.TB, s *Store, b *built, names ...string) *Image {
	t.Helper()
	var img *Image
	if len(names) == 0 {
		names = []string{""}
	}
	for _, n := range names {
		imgs, err := s.Load(context.Background(), bytes.NewReader(ociArchive(t, map[string]*built{n: b})), LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		img = imgs[0]
	}
	return img
}

func simple(t testing.TB, content string) *built {
	return build(t, gz, ocispec.ImageConfig{}, layerTar(t, file("f", content)))
}

const (
	nameA = "docker.io/library/a:1"
	nameB = "docker.io/library/b:1"
)

func digestName(b *built, repo string) string { return repo + "@" + b.desc.Digest.String() }

func TestRemove(t *testing.T) {
	ctx := context.Background()
	b := simple(t, "x")
	id := b.configDesc.Digest.String()
	s := openStore(t, testConfig(t))
	for _, tc := range []struct {
		remove    string
		untagged  []string
		deleted   bool
		remaining []string
	}{
		{remove: "a:1", untagged: []string{nameA}, remaining: []string{nameB}},
		{remove: id, untagged: []string{nameA, digestName(b, "docker.io/library/a"), nameB, digestName(b, "docker.io/library/b")}, deleted: true},
		{remove: id[7:20], untagged: []string{nameA, digestName(b, "docker.io/library/a"), nameB, digestName(b, "docker.io/library/b")}, deleted: true},
	} {
		load(t, s, b, nameA, nameB)
		r, err := s.Remove(ctx, tc.remove)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Untagged, tc.untagged) || (len(r.Deleted) == 1) != tc.deleted {
			t.Errorf("removing %s: %+v", tc.remove, r)
		}
		if tc.deleted {
			empty(t, s)
			continue
		}
		img, err := s.Get(ctx, id)
		if err != nil || !slices.Equal(img.RepoTags, tc.remaining) {
			t.Errorf("after removing %s: %+v %v", tc.remove, img, err)
		}
	}
	// The last tag takes the digest names along that only came with tags.
	load(t, s, b, nameA)
	if r, err := s.Remove(ctx, nameA); err != nil || len(r.Untagged) != 2 || len(r.Deleted) != 1 {
		t.Errorf("last tag: %+v %v", r, err)
	}
	empty(t, s)
	_, err := s.Remove(ctx, nameA)
	wantErr(t, err, errdefs.ErrNotFound, `removing image "docker.io/library/a:1"`)
}

func TestNamelessImage(t *testing.T) {
	s := openStore(t, testConfig(t))
	img := load(t, s, simple(t, "x"))
	if len(img.RepoTags)+len(img.RepoDigests) != 0 {
		t.Errorf("names: %+v", img)
	}
	if r, err := s.Remove(context.Background(), img.ID); err != nil || len(r.Untagged) != 0 || len(r.Deleted) != 1 {
		t.Errorf("%+v %v", r, err)
	}
	empty(t, s)
}

func TestPrune(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig(t)
	cfg.Pinned = []string{"pinned"}
	s := openStore(t, cfg)
	old, used, pinned := simple(t, "old"), simple(t, "used"), simple(t, "pinned")
	load(t, s, old, nameA)
	load(t, s, simple(t, "new"), nameA) // the tag moves on
	load(t, s, used, nameB)
	if p := load(t, s, pinned, "docker.io/library/pinned:latest"); !p.Pinned {
		t.Error("not pinned")
	}
	if _, err := s.Layers(ctx, used.configDesc.Digest.String(), "c1"); err != nil {
		t.Fatal(err)
	}
	r, err := s.Prune(ctx, false)
	if err != nil || !slices.Equal(r.Deleted, []string{old.configDesc.Digest.String()}) {
		t.Errorf("dangling: %+v %v", r, err)
	}
	r, err = s.Prune(ctx, true)
	if err != nil || len(r.Deleted) != 1 || !slices.Contains(r.Untagged, nameA) {
		t.Errorf("all: %+v %v", r, err)
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 || list[0].RepoTags[0] != nameB {
		t.Errorf("left: %+v %v", list, err)
	}
}

// TestRemoveWhileUsed removes an image under a container, across a restart of
// the process.
func TestRemoveWhileUsed(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig(t)
	s := openStore(t, cfg)
	b := simple(t, "x")
	id := b.configDesc.Digest.String()
	load(t, s, b, nameA)
	dirs, err := s.Layers(ctx, id, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layers(ctx, id, "c2"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	there := func() bool {
		_, err := os.Stat(filepath.Join(dirs[0], "f"))
		return err == nil
	}
	if _, err := s.Get(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("the image is still listed: %v", err)
	}
	if !there() {
		t.Fatal("the layer is gone under its container")
	}
	s.Close()
	s = openStore(t, cfg)
	if !there() {
		t.Fatal("the layer is gone after a restart")
	}
	if again, err := s.Layers(ctx, id, "c1"); err != nil || !slices.Equal(again, dirs) {
		t.Errorf("asked again: %v %v", again, err)
	}
	if _, err := s.Layers(ctx, id, "c3"); !errdefs.IsNotFound(err) {
		t.Errorf("a new container got a removed image: %v", err)
	}
	if got := s.Owners(); !slices.Equal(got, []string{"c1", "c2"}) {
		t.Errorf("owners: %v", got)
	}
	for _, owner := range []string{"c1", "c1", "unknown"} {
		if err := s.ReleaseLayers(ctx, owner); err != nil {
			t.Error(err)
		}
	}
	if !there() {
		t.Fatal("the layer is gone under the second container")
	}
	if err := s.ReleaseLayers(ctx, "c2"); err != nil {
		t.Error(err)
	}
	s.work.Wait()
	if there() {
		t.Error("the layer is left behind")
	}
	empty(t, s)
}

// TestReboot loses the run directory, as a reboot does.
func TestReboot(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig(t)
	s := openStore(t, cfg)
	b := simple(t, "x")
	img := load(t, s, b, nameA)
	if _, err := s.Layers(ctx, img.ID, "c1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(ctx, nameA); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.RemoveAll(cfg.Run); err != nil {
		t.Fatal(err)
	}
	empty(t, openStore(t, cfg))
}

// TestReuse removes an image and loads it again: nothing may point to the old
// directories.
func TestReuse(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testConfig(t))
	b := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	for i := range 3 {
		img := load(t, s, b, nameA)
		owner := fmt.Sprint("c", i)
		dirs, err := s.Layers(ctx, img.ID, owner)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			if _, err := os.Stat(filepath.Join(d, "etc/hostname")); err != nil {
				t.Error(err)
			}
		}
		if err := s.ReleaseLayers(ctx, owner); err != nil {
			t.Error(err)
		}
		if _, err := s.Remove(ctx, img.ID); err != nil {
			t.Fatal(err)
		}
	}
	empty(t, s)
}

func TestLayersArguments(t *testing.T) {
	s := openStore(t, testConfig(t))
	img := load(t, s, simple(t, "x"), nameA)
	for _, owner := range []string{"", ".", "..", "a/b", "../../etc/passwd", strings.Repeat("x", 300), "a\x00"} {
		_, err := s.Layers(context.Background(), img.ID, owner)
		wantErr(t, err, errdefs.ErrInvalidArgument, "is not a valid ID")
	}
	_, err := s.Layers(context.Background(), "sha256:"+strings.Repeat("0", 64), "c")
	wantErr(t, err, errdefs.ErrNotFound)
}

func TestReopen(t *testing.T) {
	ctx := context.Background()
	cfg := testConfig(t)
	s := openStore(t, cfg)
	b := build(t, gz, ocispec.ImageConfig{Cmd: []string{"x"}}, twoLayers(t)...)
	before := load(t, s, b, nameA, nameB)
	s.Close()
	s = openStore(t, cfg)
	after, err := s.Get(ctx, "a:1")
	if err != nil {
		t.Fatal(err)
	}
	if after.ID != before.ID || after.Size != before.Size || !slices.Equal(after.RepoTags, before.RepoTags) || after.Spec.Config.Cmd[0] != "x" || !after.Added.Equal(before.Added) {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	if dirs, err := s.Layers(ctx, after.ID, "c"); err != nil || len(dirs) != 2 {
		t.Errorf("%v %v", dirs, err)
	}
}

func TestLock(t *testing.T) {
	cfg := testConfig(t)
	openStore(t, cfg)
	_, err := Open(context.Background(), cfg)
	wantErr(t, err, errdefs.ErrUnavailable, cfg.Root, fmt.Sprintf("process %d", os.Getpid()), "(image.test)")
}

func TestPermissions(t *testing.T) {
	cfg := testConfig(t)
	s := openStore(t, cfg)
	load(t, s, simple(t, "x"), nameA)
	for _, d := range []string{cfg.Root, cfg.Run, filepath.Join(cfg.Run, "owners")} {
		fi, err := os.Stat(d)
		if err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", d, fi.Mode(), err)
		}
	}
}

func TestGetAmbiguous(t *testing.T) {
	s := openStore(t, testConfig(t))
	// 17 images: two of them begin with the same digit, but an ID prefix has
	// four; names come first.
	for i := range 2 {
		load(t, s, simple(t, fmt.Sprint(i)), fmt.Sprintf("docker.io/library/cafe:%d", i))
	}
	img, err := s.Get(context.Background(), "cafe:1")
	if err != nil || img.RepoTags[0] != "docker.io/library/cafe:1" {
		t.Errorf("%+v %v", img, err)
	}
	for _, ref := range []string{"cafe", "sha256:0123", "nope", "abc"} {
		if _, err := s.Get(context.Background(), ref); !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	_, err = s.Get(context.Background(), "Not A Name")
	wantErr(t, err, errdefs.ErrInvalidArgument, "couldn't parse image name")
}

func TestSave(t *testing.T) {
	ctx := context.Background()
	a := openStore(t, testConfig(t))
	one := build(t, gz, ocispec.ImageConfig{Cmd: []string{"one"}}, twoLayers(t)...)
	two := build(t, zst, ocispec.ImageConfig{Cmd: []string{"two"}}, twoLayers(t)...)
	load(t, a, one, nameA, "docker.io/library/a:2")
	load(t, a, two, nameB)
	for _, format := range []Format{DockerArchive, OCIArchive} {
		t.Run(string(format), func(t *testing.T) {
			var buf bytes.Buffer
			if err := a.Save(ctx, &buf, format, one.configDesc.Digest.String(), nameB); err != nil {
				t.Fatal(err)
			}
			b := openStore(t, testConfig(t))
			imgs, err := b.Load(ctx, bytes.NewReader(buf.Bytes()), LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(imgs) != 2 {
				t.Fatalf("%d images", len(imgs))
			}
			for name, want := range map[string]*built{nameA: one, "docker.io/library/a:2": one, nameB: two} {
				img, err := b.Get(ctx, name)
				if err != nil || img.ID != want.configDesc.Digest.String() || img.Manifest != want.desc.Digest {
					t.Errorf("%s: %+v %v", name, img, err)
				}
			}
			ls, err := b.leases.List(scope(ctx))
			if err != nil || len(ls) > 0 {
				t.Errorf("leases: %v %v", ls, err)
			}
		})
	}
	wantErr(t, a.Save(ctx, &bytes.Buffer{}, "zip", nameA), errdefs.ErrInvalidArgument, "docker-archive")
	wantErr(t, a.Save(ctx, &bytes.Buffer{}, OCIArchive, "missing"), errdefs.ErrNotFound, `image "missing"`)
	wantErr(t, a.Save(ctx, &bytes.Buffer{}, OCIArchive), errdefs.ErrInvalidArgument, "no image named")
}

func writeLayout(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for n, b := range files {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadLayout(t *testing.T) {
	ctx := context.Background()
	b := build(t, zst, ocispec.ImageConfig{}, twoLayers(t)...)
	d := t.TempDir()
	writeLayout(t, d, layoutFiles(t, map[string]*built{"": b}))
	s := openStore(t, testConfig(t))
	imgs, err := s.LoadFile(ctx, d, LoadOptions{Name: "given:v2"})
	if err != nil {
		t.Fatal(err)
	}
	if len(imgs) != 1 || imgs[0].RepoTags[0] != "docker.io/library/given:v2" {
		t.Errorf("%+v", imgs[0])
	}
	// A blob that is a link out of the layout is not followed.
	evil := t.TempDir()
	files := layoutFiles(t, map[string]*built{"": b})
	blob := "blobs/sha256/" + b.layers[0].Digest.Encoded()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, files[blob], 0o600); err != nil {
		t.Fatal(err)
	}
	delete(files, blob)
	writeLayout(t, evil, files)
	if err := os.Symlink(outside, filepath.Join(evil, blob)); err != nil {
		t.Fatal(err)
	}
	s2 := openStore(t, testConfig(t))
	if _, err := s2.LoadFile(ctx, evil, LoadOptions{}); err == nil {
		t.Error("a link out of the layout was followed")
	}
	empty(t, s2)
}

// TestConcurrentLoads reads archives whose files have the same names and
// different contents.
func TestConcurrentLoads(t *testing.T) {
	s := openStore(t, testConfig(t))
	var wg sync.WaitGroup
	for i := range 6 {
		layers := [][]byte{layerTar(t, file("f", strings.Repeat(fmt.Sprint(i), 10_000*(i+1))))}
		data := dockerArchive(t, build(t, plain, ocispec.ImageConfig{}, layers...), layers, fmt.Sprintf("img:%d", i))
		if i%2 == 1 {
			data = data[:len(data)/2]
		}
		wg.Go(func() {
			_, err := s.Load(context.Background(), bytes.NewReader(data), LoadOptions{})
			if (err != nil) != (i%2 == 1) {
				t.Errorf("archive %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if list, err := s.List(context.Background()); err != nil || len(list) != 3 {
		t.Errorf("%d images, %v", len(list), err)
	}
}

func TestLoadErrors(t *testing.T) {
	ctx := context.Background()
	b := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	good := ociArchive(t, map[string]*built{nameA: b})
	missing := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	delete(missing.blobs, missing.layers[1].Digest)
	for _, tc := range []struct {
		name string
		data []byte
		kind error
		word string
	}{
		{"nothing", nil, errdefs.ErrInvalidArgument, "unrecognized image format"},
		{"not a tar", bytes.Repeat([]byte("no tar "), 1000), errdefs.ErrInvalidArgument, "not a valid image archive"},
		{"truncated", good[:bytes.Index(good, []byte("imageLayoutVersion"))+3], errdefs.ErrInvalidArgument, "unexpected EOF"},
		{"some other tar", layerTar(t, file("README", "hello")), errdefs.ErrInvalidArgument, "unrecognized image format"},
		{"layer missing", ociArchive(t, map[string]*built{nameA: missing}), errdefs.ErrNotFound, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := openStore(t, testConfig(t))
			_, err := s.Load(ctx, bytes.NewReader(tc.data), LoadOptions{})
			wantErr(t, err, tc.kind, "failed to load images", tc.word)
			t.Log(err)
			empty(t, s)
		})
	}
	s := openStore(t, testConfig(t))
	_, err := s.LoadFile(ctx, "/nonexistent.tar", LoadOptions{})
	wantErr(t, err, fs.ErrNotExist)
	_, err = s.LoadFile(ctx, t.TempDir(), LoadOptions{})
	wantErr(t, err, fs.ErrNotExist, "no OCI image layout")
	wantErr(t, err, errdefs.ErrInvalidArgument)
}

func TestProgress(t *testing.T) {
	s := openStore(t, testConfig(t))
	f := newFake(t)
	b := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	ref := f.add("a", "b", b)
	pull := func() (phases []Phase, last Progress) {
		_, err := s.Pull(context.Background(), ref, PullOptions{Progress: func(p Progress) {
			if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
				phases = append(phases, p.Phase)
			}
			last = p
		}})
		if err != nil {
			t.Fatal(err)
		}
		return phases, last
	}
	phases, last := pull()
	if want := []Phase{Resolving, Pulling, Storing, Complete}; !slices.Equal(phases, want) {
		t.Errorf("phases %v, want %v", phases, want)
	}
	for i, l := range last.Layers {
		if l.Status != LayerDone || l.Current != l.Total || l.Total != b.layers[i].Size || l.Digest != b.layers[i].Digest {
			t.Errorf("layer %d: %+v", i, l)
		}
	}
	before := f.blobGets.Load()
	if phases, _ = pull(); !slices.Equal(phases, []Phase{Resolving, Complete}) || f.blobGets.Load() != before {
		t.Errorf("second pull: phases %v, %d blobs", phases, f.blobGets.Load()-before)
	}
	// Another image on the same layers has only to fetch its configuration.
	b = build(t, gz, ocispec.ImageConfig{Cmd: []string{"other"}}, twoLayers(t)...)
	ref = f.add("a", "c", b)
	_, last = pull()
	for i, l := range last.Layers {
		if l.Status != LayerExists {
			t.Errorf("other image, layer %d: %+v", i, l)
		}
	}
}
