// Package busybox makes image archives with nothing in them but busybox, for
// tests that need a container's image and no registry. The program is the
// host's, statically linked.
//
// An archive is made in memory, the same for the same image. Floor: none; only
// tests import it.
package busybox

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Image is a busybox image. Its default command waits, so that it serves as
// another runtime's pause as well.
type Image struct {
	Name  string
	Env   []string          // beside PATH
	Files map[string]string // more files; those of bin can be executed
}

// Archive is the image as docker save would write it.
func (i Image) Archive(t testing.TB) []byte {
	t.Helper()
	layer := i.layer(t)
	sum := sha256.Sum256(layer)
	config := toJSON(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": []string{"sleep", "1000000"}, "Env": append([]string{"PATH=/bin"}, i.Env...), "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	a := newArchive(t)
	a.add(tar.Header{Name: "layer.tar", Mode: 0o644, Typeflag: tar.TypeReg}, layer)
	a.add(tar.Header{Name: "config.json", Mode: 0o644, Typeflag: tar.TypeReg}, config)
	a.add(tar.Header{Name: "manifest.json", Mode: 0o644, Typeflag: tar.TypeReg},
		toJSON(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}}}))
	return a.end()
}

func (i Image) layer(t testing.TB) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("the test's image needs busybox (Debian: busybox-static)")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	a := newArchive(t)
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/share", "var"} {
		a.add(tar.Header{Name: d + "/", Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	}
	a.add(tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil)
	a.add(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, program)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			a.add(tar.Header{Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}, nil)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		mode := int64(0o644)
		if strings.HasPrefix(name, "bin/") {
			mode = 0o755
		}
		a.add(tar.Header{Name: name, Mode: mode, Typeflag: tar.TypeReg}, []byte(i.Files[name]))
	}
	return a.end()
}

// archive is a tar file in the making.
type archive struct {
	t   testing.TB
	buf bytes.Buffer
	w   *tar.Writer
}

func newArchive(t testing.TB) *archive {
	a := &archive{t: t}
	a.w = tar.NewWriter(&a.buf)
	return a
}

func (a *archive) add(h tar.Header, data []byte) {
	a.t.Helper()
	h.Size = int64(len(data))
	if err := a.w.WriteHeader(&h); err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.w.Write(data); err != nil {
		a.t.Fatal(err)
	}
}

func (a *archive) end() []byte {
	a.t.Helper()
	if err := a.w.Close(); err != nil {
		a.t.Fatal(err)
	}
	return a.buf.Bytes()
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
