package apibench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"unipod.dev/unipod/internal/bench"
)

// processes are what a server consists of.
type processes struct {
	dir     string
	running []*exec.Cmd
}

// start runs a program, with its output in a file of the server's directory.
func (p *processes) start(name string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(p.dir, filepath.Base(name)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// They must not outlive a bench that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.running = append(p.running, cmd)
	return nil
}

// PIDs implements Server.
func (p *processes) PIDs() (pids []int) {
	for _, cmd := range p.running {
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

// stopTimeout is how long a server may take to end by itself.
const stopTimeout = 30 * time.Second

// Stop implements Server: last started, first ended.
func (p *processes) Stop() error {
	var errs []error
	for i := len(p.running) - 1; i >= 0; i-- {
		cmd := p.running[i]
		errs = append(errs, cmd.Process.Signal(syscall.SIGTERM))
		timer := time.AfterFunc(stopTimeout, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // what it exits with after a signal says nothing
		timer.Stop()
	}
	p.running = nil
	return errors.Join(errs...)
}

// Remove implements Server.
func (p *processes) Remove() error { return os.RemoveAll(p.dir) }

// freePort is one that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// unipod is `unipod serve` in directories of its own.
type unipod struct {
	processes
	program string
	run     string
	loaded  bool
}

// Unipod is the server of a unipod binary; run is a directory on a tmpfs.
func Unipod(program, run string) (Server, error) {
	dir, err := os.MkdirTemp("/var/tmp", "unipod-bench-api-")
	if err != nil {
		return nil, err
	}
	return &unipod{processes: processes{dir: dir}, program: program, run: run}, nil
}

func (u *unipod) Name() string { return "unipod" }

func (u *unipod) flags() []string {
	return []string{"--root", filepath.Join(u.dir, "root"), "--run", u.run}
}

// Start implements Server.
func (u *unipod) Start(context.Context) error {
	return u.start(u.program, append(u.flags(), "serve", "--manifests", filepath.Join(u.dir, "manifests"),
		"--api-address", "127.0.0.1:0", "--kubelet-address", "127.0.0.1:0", "--image-gc-high-threshold", "100", "--eviction-hard=")...) // what is measured is not how full the disk is
}

// Client implements Server.
func (u *unipod) Client() (*rest.Config, error) {
	return clientcmd.BuildConfigFromFlags("", filepath.Join(u.run, "kubeconfig"))
}

// Stop implements Server. The kubeconfig goes with it, which names the port.
func (u *unipod) Stop() error {
	err := u.processes.Stop()
	if rerr := os.Remove(filepath.Join(u.run, "kubeconfig")); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Image implements Server.
func (u *unipod) Image(ctx context.Context) (string, error) {
	if u.loaded {
		return bench.ImageName, nil
	}
	archive, err := bench.BuildImage()
	if err != nil {
		return "", err
	}
	tar := filepath.Join(u.dir, "image.tar")
	if err := os.WriteFile(tar, archive, 0o600); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, u.program, append(u.flags(), "image", "load", tar)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("loading the image: %w: %s", err, out)
	}
	u.loaded = true
	return bench.ImageName, nil
}

// Idle implements Server: a pod has a directory as long as there is anything
// of it.
func (u *unipod) Idle() (bool, error) {
	left, err := os.ReadDir(filepath.Join(u.dir, "root", "pods"))
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.IsDir() }), nil
}

// kube is a kube-apiserver over an etcd.
type kube struct {
	processes
	apiserver, etcd        string
	port, etcdPort, etcdTo int
}

const token = "bench"

// Kube is the server of the kube-apiserver and etcd that are on PATH; nil when
// one of them isn't.
func Kube() (Server, error) {
	apiserver, err := exec.LookPath("kube-apiserver")
	if err != nil {
		return nil, nil
	}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		return nil, nil
	}
	k := &kube{apiserver: apiserver, etcd: etcd}
	for _, port := range []*int{&k.port, &k.etcdPort, &k.etcdTo} {
		if *port, err = freePort(); err != nil {
			return nil, err
		}
	}
	if k.dir, err = os.MkdirTemp("/var/tmp", "unipod-bench-kube-"); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err == nil {
		var der []byte
		if der, err = x509.MarshalECPrivateKey(key); err == nil {
			text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
			err = errors.Join(os.WriteFile(k.file("sa.key"), text, 0o600),
				os.WriteFile(k.file("tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600))
		}
	}
	if err != nil {
		return nil, errors.Join(err, k.Remove())
	}
	return k, nil
}

func (k *kube) file(name string) string { return filepath.Join(k.dir, name) }

func (k *kube) Name() string { return "kube-apiserver + etcd" }

// Start implements Server.
func (k *kube) Start(context.Context) error {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", k.etcdPort), fmt.Sprintf("http://127.0.0.1:%d", k.etcdTo)
	if err := k.start(k.etcd, "--data-dir", k.file("etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer); err != nil {
		return err
	}
	return k.start(k.apiserver, "--etcd-servers", client, "--secure-port", fmt.Sprint(k.port), "--bind-address", "127.0.0.1", "--cert-dir", k.file("certs"),
		"--service-cluster-ip-range", "10.67.0.0/16", "--authorization-mode", "RBAC", "--token-auth-file", k.file("tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", k.file("sa.key"), "--service-account-signing-key-file", k.file("sa.key"))
}

// Client implements Server.
func (k *kube) Client() (*rest.Config, error) {
	return &rest.Config{Host: fmt.Sprintf("https://127.0.0.1:%d", k.port), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, nil
}

// Image implements Server: there is no node.
func (k *kube) Image(context.Context) (string, error) { return "", nil }

// Idle implements Server.
func (k *kube) Idle() (bool, error) { return true, nil }
