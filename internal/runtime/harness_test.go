package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/network"
	"unipod.dev/unipod/test/busybox"
)

// world is a runtime on directories of its own, in the machine's cgroups and
// in a network namespace the test binary was moved to (see TestMain).
type world struct {
	*Runtime
	t    testing.TB
	cfg  Config
	stop func()
}

// worlds are the directories of every world this process has made.
var worlds sync.Map

const testImage = "localhost/busybox:test"

// newWorld opens a runtime with a busybox image.
func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the runtime's tests need root")
	}
	// Short: unix sockets bound how long a path may be.
	dir, err := os.MkdirTemp("", "up")
	if err != nil {
		t.Fatal(err)
	}
	worlds.Store(filepath.Base(dir), true)
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, cfg: Config{Root: filepath.Join(dir, "r"), Run: filepath.Join(dir, "n")}}
	w.open()
	t.Cleanup(func() {
		w.clear()
		w.cfg.Network.Remove(context.Background())
		w.stop()
	})
	archive := filepath.Join(dir, "busybox.tar")
	if err := os.WriteFile(archive, busyboxArchive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.cfg.Images.LoadFile(t.Context(), archive, image.LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	return w
}

// open starts the runtime; it is called again after crash.
func (w *world) open() {
	w.t.Helper()
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(testLog{w.t}, nil))
	images, err := image.Open(ctx, image.Config{Root: filepath.Join(w.cfg.Root, "images"), Run: filepath.Join(w.cfg.Run, "images"), Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	net, err := network.Open(ctx, network.Config{StateDir: filepath.Join(w.cfg.Root, "net"), RunDir: filepath.Join(w.cfg.Run, "net"), Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	groups, err := cgroup.Open(cgroup.Config{Root: "/" + filepath.Base(filepath.Dir(w.cfg.Root))})
	if err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Images, w.cfg.Network, w.cfg.Cgroups, w.cfg.Log = images, net, groups, log
	if w.Runtime, err = Open(ctx, w.cfg); err != nil {
		w.t.Fatal(err)
	}
	w.stop = func() {
		if err := w.Runtime.Close(); err != nil {
			w.t.Errorf("closing the runtime: %v", err)
		}
		groups.Close()
		net.Close()
		images.Close()
	}
}

// restart is what happens when a node is replaced: all it knows is on disk
// and in pause.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.open()
}

func (w *world) clear() {
	for _, s := range w.allSandboxes() {
		if _, err := w.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
			w.t.Errorf("removing sandbox: %v", err)
		}
	}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if testing.Verbose() {
		fmt.Fprintf(os.Stderr, "    %s", p)
	}
	return len(p), nil
}

// busyboxArchive is the image of every test's containers.
func busyboxArchive(t testing.TB) []byte {
	t.Helper()
	return busybox.Image{Name: testImage, Env: []string{"FROM=image"}, Files: map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home:/bin/sh\n",
		"etc/group":  "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n",
	}}.Archive(t)
}

// pod is a sandbox under test.
type pod struct {
	w      *world
	id     string
	config *runtimeapi.PodSandboxConfig
	n      int
}

func podConfig(w *world, name string, mod ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(w.cfg.Root, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, m := range mod {
		m(c)
	}
	return c
}

func (w *world) pod(name string, mod ...func(*runtimeapi.PodSandboxConfig)) *pod {
	w.t.Helper()
	c := podConfig(w, name, mod...)
	resp, err := w.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		w.t.Fatalf("RunPodSandbox: %v", err)
	}
	return &pod{w: w, id: resp.PodSandboxId, config: c}
}

func (p *pod) containerConfig(name string, cmd []string, mod ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	ns := p.config.Linux.SecurityContext.NamespaceOptions
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: uint32(p.n)},
		Image:    &runtimeapi.ImageSpec{Image: testImage},
		Command:  cmd,
		LogPath:  fmt.Sprintf("%s_%d.log", name, p.n),
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: ns.Network, Pid: ns.Pid, Ipc: ns.Ipc, UsernsOptions: ns.UsernsOptions},
		}},
	}
	p.n++
	for _, m := range mod {
		m(c)
	}
	return c
}

func (p *pod) create(name string, cmd []string, mod ...func(*runtimeapi.ContainerConfig)) (string, error) {
	resp, err := p.w.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.containerConfig(name, cmd, mod...), SandboxConfig: p.config,
	})
	if err != nil {
		return "", err
	}
	return resp.ContainerId, nil
}

// start makes and starts a container.
func (p *pod) start(name string, cmd []string, mod ...func(*runtimeapi.ContainerConfig)) string {
	p.w.t.Helper()
	id, err := p.create(name, cmd, mod...)
	if err != nil {
		p.w.t.Fatalf("CreateContainer: %v", err)
	}
	if _, err := p.w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		p.w.t.Fatalf("StartContainer: %v", err)
	}
	return id
}

func (w *world) status(id string) *runtimeapi.ContainerStatus {
	w.t.Helper()
	resp, err := w.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		w.t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

// wait waits for a container's end.
func (w *world) wait(id string) *runtimeapi.ContainerStatus {
	w.t.Helper()
	for range 1000 {
		if st := w.status(id); st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return st
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("container %s did not end", id)
	return nil
}

// output is what an ended container logged, stdout and stderr together.
func (w *world) output(id string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.status(id).LogPath)
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, " ", 4)
		out.WriteString(f[3])
	}
	return out.String()
}

// run runs a command in a container of its own and returns what it printed.
func (p *pod) run(cmd string, mod ...func(*runtimeapi.ContainerConfig)) (string, *runtimeapi.ContainerStatus) {
	p.w.t.Helper()
	id := p.start("run", []string{"sh", "-c", cmd}, mod...)
	st := p.w.wait(id)
	return p.w.output(id), st
}

// exec runs a command in a running container.
func (w *world) exec(id string, cmd ...string) (string, int32) {
	w.t.Helper()
	resp, err := w.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 30})
	if err != nil {
		w.t.Fatalf("ExecSync %v: %v", cmd, err)
	}
	return string(slices.Concat(resp.Stdout, resp.Stderr)), resp.ExitCode
}
