package scenario

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// imageName is what every scenario runs: busybox, and the program of
// directory server.
const imageName = "unipod.test/scenario:1"

// writeImage makes it, as docker save would.
func writeImage(t *testing.T, dir string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("the scenarios' image needs busybox (Debian: busybox-static)")
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	layer := &bytes.Buffer{}
	w := tar.NewWriter(layer)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "usr", "usr/share"} {
		add(tar.Header{Name: d + "/", Mode: 0o755, Typeflag: tar.TypeDir}, nil)
	}
	add(tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil)
	for name, path := range map[string]string{"bin/busybox": busybox, "bin/server": buildServer(t, dir)} {
		program, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		add(tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg}, program)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}, nil)
		}
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:\nuser:x:1000:\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(layer.Bytes())
	config := mustJSON(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		// The default waits: it serves as another runtime's pause as well.
		"config": map[string]any{"Cmd": []string{"sleep", "1000000"}, "Env": []string{"PATH=/bin"}, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	manifest := mustJSON(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{imageName}, "Layers": []string{"layer.tar"}}})
	archive := &bytes.Buffer{}
	w = tar.NewWriter(archive)
	add(tar.Header{Name: "layer.tar", Mode: 0o644, Typeflag: tar.TypeReg}, layer.Bytes())
	add(tar.Header{Name: "config.json", Mode: 0o644, Typeflag: tar.TypeReg}, config)
	add(tar.Header{Name: "manifest.json", Mode: 0o644, Typeflag: tar.TypeReg}, manifest)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// buildServer builds directory server: static, as the image has no libraries.
func buildServer(t *testing.T, dir string) string {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil { // sudo has a PATH of its own
		//lint:ignore SA1019 tests run on the machine they were built on
		tool = filepath.Join(runtime.GOROOT(), "bin", "go")
	}
	path := filepath.Join(dir, "server")
	cmd := exec.Command(tool, "build", "-trimpath", "-tags", "containers_image_openpgp", "-ldflags", "-s -w", "-o", path, "./server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the scenarios' server: %v\n%s", err, out)
	}
	return path
}
