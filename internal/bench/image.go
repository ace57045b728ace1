package bench

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// ImageName is the name of the image that a bench makes.
const ImageName = "localhost/unipod-bench:1"

// appLayer is busybox and links to it, from the static busybox of this machine.
func appLayer() (*archive, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("the bench's image is made of a static busybox (Debian: apt install busybox-static): %w", err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	layer := &archive{}
	layer.dir("bin")
	layer.file("bin/busybox", busybox, 0o755)
	for _, applet := range []string{"sh", "sleep", "true"} {
		layer.link("bin/"+applet, "busybox")
	}
	for _, dir := range []string{"etc", "proc", "sys", "dev", "tmp"} {
		layer.dir(dir)
	}
	return layer, layer.close()
}

func appConfig() map[string]any {
	return map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": appCommand}
}

// BuildImage makes a docker-archive of the image that the bench's pods run.
func BuildImage() ([]byte, error) {
	layer, err := appLayer()
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": appConfig(),
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer.Bytes())}},
	})
	if err != nil {
		return nil, err
	}
	configName := digest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{ImageName}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	image := &archive{}
	image.file(configName, config, 0o644)
	image.file("layer.tar", layer.Bytes(), 0o644)
	image.file("manifest.json", manifest, 0o644)
	if err := image.close(); err != nil {
		return nil, err
	}
	return image.Bytes(), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// archive is a tar in memory that keeps its first error.
type archive struct {
	bytes.Buffer
	w   *tar.Writer
	err error
}

func (a *archive) add(h *tar.Header, body []byte) {
	if a.w == nil {
		a.w = tar.NewWriter(&a.Buffer)
	}
	if a.err == nil {
		a.err = a.w.WriteHeader(h)
	}
	if a.err == nil {
		_, a.err = a.w.Write(body)
	}
}

func (a *archive) dir(name string) {
	a.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}

func (a *archive) file(name string, body []byte, mode int64) {
	a.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body))}, body)
}

func (a *archive) link(name, target string) {
	a.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (a *archive) close() error {
	return errors.Join(a.err, a.w.Close())
}

// unpackRoot makes the image's root file system as a directory, for the floor.
func unpackRoot(dir string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, sub := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), busybox, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Symlink("busybox", filepath.Join(dir, "bin/sleep")), os.Symlink("busybox", filepath.Join(dir, "bin/true")))
}
