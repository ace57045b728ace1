package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzApply feeds raw streams to the applier, on top of a base layer.
func FuzzApply(f *testing.F) {
	f.Add(archive(f, dir("d", 0o755), file("d/f", "x"), sym("s", "../.."), file("s/x", "y")))
	f.Add(archive(f, hard("h", "base/file"), file("base/.wh.file", ""), file("base/.wh..wh..opq", "")))
	f.Add(archive(f, file("a", "x").xattr("user.a", "b"), entry{tar.Header{Name: "n", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""}))
	f.Add(archive(f, file(strings.Repeat("long/", 60)+"x", "1"), file("../up", "2")))
	f.Fuzz(func(t *testing.T, data []byte) { applyConfined(t, data) })
}

// FuzzEntries turns its input into well-formed archives of hostile entries:
// few names, so that they meet, and links that lead everywhere.
func FuzzEntries(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
	f.Add([]byte("\x02\x00\x0b\x01\x0c\x00\x03\x0c\x01"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		names := []string{"a", "b", "a/b", "b/a", "s/a", "a/s/b", "s", ".wh.a", "a/.wh.b", "s/.wh..wh..opq", ".wh..wh..opq", "base/file", "base/x/y"}
		targets := []string{"a", "b", "..", "../..", "/", "%OUT%", "%OUT%/outside", "s", "a/b", "base", "base/file", "../../../../../../../..", "."}
		types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i+2 < len(ops) && i < 120; i += 3 {
			h := &tar.Header{
				Typeflag: types[int(ops[i])%len(types)],
				Name:     names[int(ops[i+1])%len(names)],
				Linkname: targets[int(ops[i+2])%len(targets)],
				Mode:     int64(ops[i]) << 4,
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		applyConfined(t, b.Bytes())
	})
}

// applyConfined applies data below a directory whose surroundings must not
// change, whatever the outcome.
func applyConfined(t *testing.T, data []byte) {
	top := t.TempDir()
	out := filepath.Join(top, "out")
	mustMkdir(t, out)
	if err := os.WriteFile(filepath.Join(out, "outside"), []byte("untouched"), 0o640); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(top, "root")
	base := filepath.Join(root, "base")
	upper := filepath.Join(root, "upper")
	mustMkdir(t, root)
	mustMkdir(t, base)
	mustMkdir(t, upper)
	data = redirect(data, out)

	bl := mustApply(t, base, archive(t, dir("base", 0o755), file("base/file", "lower"), sym("base/up", "../../../out")))
	if err := bl.Finish(nil); err != nil {
		t.Fatal(err)
	}
	before, beforeBase := tree(t, out), tree(t, base)

	f, err := os.Open(upper)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// A sparse entry may claim to be huge; whoever pulls gives up some time.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if l, err := Apply(ctx, f, bytes.NewReader(data), Options{}); err == nil {
		b, err := os.Open(base)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		// An error is as good as success: nothing may leak out of the root.
		_ = l.Finish([]*os.File{b})
	}
	if after := tree(t, out); after != before {
		t.Fatalf("outside changed:\n%s", after)
	}
	if after := tree(t, base); after != beforeBase {
		t.Fatalf("the layer below changed:\n%s", after)
	}
	names, err := os.ReadDir(top)
	if err != nil || len(names) != 2 {
		t.Fatalf("something appeared beside the root: %v, %v", names, err)
	}
}

// redirect rewrites links to %OUT% in a well-formed archive; a malformed one
// is left alone.
func redirect(data []byte, out string) []byte {
	if !bytes.Contains(data, []byte("%OUT%")) {
		return data
	}
	var b bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(data)), tar.NewWriter(&b)
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		h.Linkname = strings.ReplaceAll(h.Linkname, "%OUT%", out)
		if w.WriteHeader(h) != nil {
			return data
		}
		if _, err := io.Copy(w, r); err != nil {
			return data
		}
	}
	w.Close()
	return b.Bytes()
}

func mustMkdir(t *testing.T, p string) {
	t.Helper()
	if err := os.Mkdir(p, 0o755); err != nil {
		t.Fatal(err)
	}
}

func mustApply(t *testing.T, p string, data []byte) *Layer {
	t.Helper()
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := Apply(context.Background(), f, bytes.NewReader(data), Options{Base: true})
	if err != nil {
		t.Fatal(err)
	}
	return l
}
