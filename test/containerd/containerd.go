// Package containerd starts a containerd for a test, with directories of its
// own, to be spoken to through the CRI. It ends with the test. Floor: none;
// only tests import it.
package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"unipod.dev/unipod/internal/cri"
)

// cniPlugins is where Debian has them.
const cniPlugins = "/usr/lib/cni"

// Missing names the programs that a containerd needs and the machine lacks, and
// where to get them; it is empty if there are none. Pods with addresses of
// their own need more.
func Missing(network bool) string {
	tools := []string{"containerd", "ctr", "runc"}
	if network {
		tools = append(tools, cniPlugins+"/bridge")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " (Debian: containerd, runc, containernetworking-plugins)"
		}
	}
	return ""
}

// Config is what differs between containerds.
type Config struct {
	Dir     string // for all it keeps; made when it is missing
	Image   string // the name of the archive's image, which serves as pause too
	Archive string // a file
	// Network is whether pods get addresses: of 10.77.0.0/16, on the bridge
	// unipodtest0, by CNI's reference plugins.
	Network bool
	// Snapshotter is containerd's default when it is empty.
	Snapshotter string
}

const text = `version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = %[3]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[4]q
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %[5]q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[6]q
    conf_dir = %[7]q
`

const network = `{"cniVersion": "0.4.0", "name": "unipodtest", "plugins": [
  {"type": "bridge", "bridge": "unipodtest0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "loopback"}]}`

// Start starts one that has the image, and returns its CRI and the endpoint
// where others find it.
func Start(t testing.TB, c Config) (service cri.Service, endpoint string) {
	t.Helper()
	socket := filepath.Join(c.Dir, "c.sock")
	if c.Snapshotter == "" {
		c.Snapshotter = "overlayfs"
	}
	cni := filepath.Join(c.Dir, "cni")
	if err := os.MkdirAll(cni, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(c.Dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if c.Network {
		write("cni/net.conflist", fmt.Sprintf(network, filepath.Join(c.Dir, "ipam")))
	}
	run(t, write("config.toml", fmt.Sprintf(text,
		filepath.Join(c.Dir, "root"), filepath.Join(c.Dir, "state"), socket, c.Image, c.Snapshotter, cniPlugins, cni)), write("log", ""))
	service = dial(t, socket)
	if out, err := exec.Command("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "--snapshotter", c.Snapshotter, c.Archive).CombinedOutput(); err != nil {
		t.Fatalf("importing the image: %v: %s", err, out)
	}
	return service, "unix://" + socket
}

// run runs it until the test is over.
func run(t testing.TB, config, logFile string) {
	t.Helper()
	log, err := os.OpenFile(logFile, os.O_WRONLY, 0)
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
			text, _ := os.ReadFile(logFile)
			t.Logf("containerd: %s", text[max(len(text)-6000, 0):])
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		log.Close()
	})
}

func dial(t testing.TB, socket string) cri.Service {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		service, closer, err := cri.Dial(t.Context(), socket)
		if err == nil {
			t.Cleanup(func() { closer.Close() })
			return service
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %v", err)
		}
	}
}
