package scenario

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"unipod.dev/unipod/test/busybox"
)

// imageName is what every scenario runs: busybox, and the program of
// directory server.
const imageName = "unipod.test/scenario:1"

// writeImage makes it, as docker save would.
func writeImage(t *testing.T, dir string) string {
	t.Helper()
	server, err := os.ReadFile(buildServer(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	archive := busybox.Image{Name: imageName, Files: map[string]string{
		"bin/server": string(server),
		"etc/passwd": "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n",
	}}.Archive(t)
	path := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(path, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
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
