// Package cri speaks to `unipod serve --only cri` as kubelet does: the real
// command, its socket, gRPC, and the streaming protocols behind its URLs.
//
// Everything happens in network and mount namespaces of its own and in
// directories of its own. Floor: none; nothing imports it.
package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m, unix.CLONE_NEWNET|unix.CLONE_NEWNS) }

const image = harness.DemoImage

// node is `unipod serve --only cri` on directories of its own.
type node struct {
	*harness.Machine
	serve []string // further flags of serve
	cri.Service
	cmd    *exec.Cmd
	conn   io.Closer
	log    *os.File
	serial atomic.Int64
}

func newNode(t *testing.T, serve ...string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "uc") // unix sockets' paths are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{Machine: harness.New(t, dir), serve: serve}
	n.LoadDemo()
	if n.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	n.start()
	t.Cleanup(func() {
		n.clear()
		n.end(syscall.SIGTERM)
		if b, _ := os.ReadFile(n.log.Name()); strings.Contains(string(b), "DATA RACE") || t.Failed() {
			t.Errorf("the node's log:\n%s", b)
		}
		n.log.Close()
		if links, _ := exec.Command("ip", "-o", "link", "show", "type", "veth").Output(); len(links) > 0 {
			t.Errorf("veths are left: %s", links)
		}
	})
	return n
}

func (n *node) socket() string { return filepath.Join(n.Run, "cri.sock") }

func (n *node) start() {
	n.T.Helper()
	n.cmd = n.Command(append([]string{"serve", "--only", "cri", "--cgroup-parent", "/" + filepath.Base(n.Dir)}, n.serve...)...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.T.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		svc, conn, err := cri.Dial(ctx, n.socket())
		if err == nil {
			n.Service, n.conn = svc, conn
			return
		}
		if ctx.Err() != nil {
			b, _ := os.ReadFile(n.log.Name())
			n.T.Fatalf("the node doesn't answer: %v\n%s", err, b)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// end ends the node's process, and nothing else.
func (n *node) end(sig syscall.Signal) {
	n.T.Helper()
	n.conn.Close()
	n.cmd.Process.Signal(sig)
	err := n.cmd.Wait()
	var exit *exec.ExitError
	if sig == syscall.SIGTERM && err != nil || err != nil && !errors.As(err, &exit) {
		n.T.Errorf("the node ended: %v", err)
	}
}

func (n *node) clear() {
	n.T.Helper()
	list, err := n.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.T.Error(err)
		return
	}
	for _, s := range list.Items {
		if _, err := n.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			n.T.Error(err)
		}
	}
}

type pod struct {
	id     string
	config *runtimeapi.PodSandboxConfig
}

// pod makes a sandbox of a new name.
func (n *node) pod(ctx context.Context) (*pod, error) {
	name := fmt.Sprintf("p%d", n.serial.Add(1))
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name},
		LogDirectory: filepath.Join(n.Root, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	resp, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		return nil, err
	}
	return &pod{id: resp.PodSandboxId, config: c}, nil
}

// create makes a container that runs a shell's script.
func (n *node) create(ctx context.Context, p *pod, script string, mod ...func(*runtimeapi.ContainerConfig)) (string, error) {
	name := fmt.Sprintf("c%d", n.serial.Add(1))
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	for _, m := range mod {
		m(c)
	}
	resp, err := n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	return resp.GetContainerId(), err
}

// mustStart makes a pod with one running container.
func (n *node) mustStart(script string, mod ...func(*runtimeapi.ContainerConfig)) (p *pod, id string) {
	n.T.Helper()
	ctx := context.Background()
	p, err := n.pod(ctx)
	if err == nil {
		id, err = n.create(ctx, p, script, mod...)
	}
	if err == nil {
		_, err = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		n.T.Fatal(err)
	}
	return p, id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.T.Helper()
	resp, err := n.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.T.Fatal(err)
	}
	return resp.Status
}

func (n *node) wait(id string) *runtimeapi.ContainerStatus {
	n.T.Helper()
	for range 2000 {
		if st := n.status(id); st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return st
		}
		time.Sleep(10 * time.Millisecond)
	}
	n.T.Fatalf("container %s does not end", id)
	return nil
}

// output is what a container has logged.
func (n *node) output(id string) string {
	n.T.Helper()
	b, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		n.T.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			n.T.Fatalf("a malformed log line: %q", line)
		}
		out.WriteString(f[3])
	}
	return out.String()
}
