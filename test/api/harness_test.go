// Package api is hostile to the Kubernetes API: large objects, many objects,
// many watches, slow clients, requests that make no sense, and a full disk.
//
// One server runs in the test's process, over a store on a small file system of
// its own, and is spoken to through TLS as a stranger would, or by a function
// call where the network is not the point. Floor: none; nothing imports it.
package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/klogs"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
)

// fsSize is the file system's of the store, where the test may mount one.
const fsSize = 256 << 20

// node is the server under test: upstream's parts allow one per process.
var node struct {
	*running
	data   string       // the store's file system
	small  bool         // it is one
	config *rest.Config // over TLS, as admin
	tls    *tls.Config
}

// childEnv makes the test binary a server in a directory, to be killed.
const childEnv = "UNIPOD_API_CHILD"

func TestMain(m *testing.M) {
	klogs.Install(slog.New(slog.DiscardHandler))
	var code int
	var err error
	if dir := os.Getenv(childEnv); dir != "" {
		err = child(dir)
	} else {
		code, err = run(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// running is a server and what it stands on.
type running struct {
	store     *store.Store
	authority *pki.Authority
	server    *apiserver.Server
	addr      string
	stop      func() error
}

// start serves the API out of a directory until stop is called.
func start(dir string) (_ *running, err error) {
	r := &running{}
	ctx, cancel := context.WithCancel(context.Background())
	undo := []func() error{func() error { cancel(); return nil }}
	r.stop = sync.OnceValue(func() (err error) {
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
		return err
	})
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if r.store, err = store.Open(store.Config{Dir: filepath.Join(dir, "api"), Log: log}); err != nil {
		return nil, err
	}
	undo = append(undo, r.store.Close)
	if r.authority, err = pki.Open(filepath.Join(dir, "pki"), clock.RealClock{}); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.addr = l.Addr().String()
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	r.server, err = apiserver.New(ctx, apiserver.Config{
		Store: r.store, PKI: r.authority, Log: log,
		Advertise: netip.MustParseAddrPort(r.addr), ServiceCIDRs: []*net.IPNet{services},
	})
	if err != nil {
		l.Close()
		return nil, err
	}
	undo = append(undo, func() error { r.server.Close(); return nil })
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(ctx, l, r.authority.Serving("test", pki.Hosts()...).GetCertificate) }()
	undo = append(undo, func() error { cancel(); return <-served })
	return r, r.server.Wait(ctx)
}

// serviceAccount makes the one that pods wait for, as a controller would.
func serviceAccount(r *running) error {
	c, err := kubernetes.NewForConfig(r.server.Loopback())
	if err != nil {
		return err
	}
	_, err = c.CoreV1().ServiceAccounts("default").Create(context.Background(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// admin is the configuration of an administrator's client.
func admin(authority *pki.Authority, addr string) (*rest.Config, error) {
	kubeconfig, err := authority.Kubeconfig("https://"+addr, authority.Admin())
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.NewDefaultClientConfig(*kubeconfig, nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return cfg, nil
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "unipod-api-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	node.data = dir
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", fsSize)); err != nil {
			return 1, fmt.Errorf("a file system for the store: %w", err)
		}
		node.small = true
		defer unix.Unmount(dir, unix.MNT_DETACH)
	}
	if node.running, err = start(dir); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, node.stop()) }()
	if err := serviceAccount(node.running); err != nil {
		return 1, err
	}
	if node.config, err = admin(node.authority, node.addr); err != nil {
		return 1, err
	}
	if node.tls, err = rest.TLSConfigFor(node.config); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// client is one over TLS; inProcess one without a network.
func client(t testing.TB) kubernetes.Interface    { return clientset(t, rest.CopyConfig(node.config)) }
func inProcess(t testing.TB) kubernetes.Interface { return clientset(t, node.server.Loopback()) }

func clientset(t testing.TB, cfg *rest.Config) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// namespace makes a namespace that is deleted with what is in it: there are no
// controllers here to do so.
func namespace(t testing.TB, name string) string {
	t.Helper()
	c := inProcess(t)
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if err := c.CoreV1().ConfigMaps(name).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		if err := c.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return name
}

// transport is a client's connections without client-go: HTTP/2, or HTTP/1.1.
func transport(http2 bool) *http.Transport {
	cfg := node.tls.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	if http2 {
		cfg.NextProtos = []string{"h2"}
	}
	return &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: http2}
}

// raw is a connection on which nothing is done unless the test does it.
func raw(t testing.TB) net.Conn {
	t.Helper()
	cfg := node.tls.Clone()
	cfg.NextProtos, cfg.ServerName = []string{"http/1.1"}, "localhost"
	c, err := tls.Dial("tcp", node.addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t testing.TB, c io.Writer, request string) {
	t.Helper()
	if _, err := io.WriteString(c, strings.ReplaceAll(request, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
}

// heap is what is in use after a collection, in MiB.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc >> 20)
}

// until waits for something to become true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to be that %s", what)
		}
	}
}
