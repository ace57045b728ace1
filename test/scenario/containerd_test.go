package scenario

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"unipod.dev/unipod/internal/cri"
)

// cniPlugins is where Debian has them.
const cniPlugins = "/usr/lib/cni"

// startContainerd starts a containerd of the test's own, with a network made by
// CNI's reference plugins, and gives it the image.
func (m *machine) startContainerd(archive string) {
	t := m.t
	t.Helper()
	for _, tool := range []string{"containerd", "ctr", "runc", cniPlugins + "/bridge"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("needs %s (Debian: containerd, runc, containernetworking-plugins)", tool)
		}
	}
	dir := filepath.Join(m.dir, "containerd")
	socket := filepath.Join(dir, "c.sock")
	m.file("containerd/cni/net.conflist", fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "scenario", "plugins": [
	{"type": "bridge", "bridge": "scenario0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
	 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	{"type": "loopback"}]}`, filepath.Join(dir, "ipam")))
	config := m.file("containerd/config.toml", fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, imageName, cniPlugins, filepath.Join(dir, "cni")))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("containerd: %s", text[max(len(text)-6000, 0):])
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		log.Close()
	})
	m.endpoint = "unix://" + socket
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, closer, err := cri.Dial(t.Context(), m.endpoint)
		if err == nil {
			closer.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %v", err)
		}
	}
	if out, err := exec.Command("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", archive).CombinedOutput(); err != nil {
		t.Fatalf("importing the image: %v: %s", err, out)
	}
}
