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
	"crypto/x509"
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
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
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
	data   string // the store's file system
	small  bool   // it is one
	store  *store.Store
	server *apiserver.Server
	config *rest.Config // over TLS, as admin
	tls    *tls.Config
	addr   string
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	klogs.Install(slog.New(slog.DiscardHandler))
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
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if node.store, err = store.Open(store.Config{Dir: filepath.Join(dir, "api"), Log: log}); err != nil {
		return 1, err
	}
	defer node.store.Close()
	authority, err := pki.Open("", clock.RealClock{})
	if err != nil {
		return 1, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1, err
	}
	node.addr = l.Addr().String()
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	node.server, err = apiserver.New(ctx, apiserver.Config{
		Store: node.store, PKI: authority, Log: log,
		Advertise: netip.MustParseAddrPort(node.addr), ServiceCIDRs: []*net.IPNet{services},
	})
	if err != nil {
		return 1, err
	}
	defer node.server.Close()
	served := make(chan error, 1)
	go func() { served <- node.server.Serve(ctx, l, authority.Serving("test", pki.Hosts()...).GetCertificate) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-served)
	}()
	if err := node.server.Wait(ctx); err != nil {
		return 1, err
	}
	// Without a controller that makes it, pods would wait for it.
	if c, err := kubernetes.NewForConfig(node.server.Loopback()); err != nil {
		return 1, err
	} else if _, err := c.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		return 1, err
	}
	kubeconfig, err := authority.Kubeconfig("https://"+node.addr, authority.Admin())
	if err != nil {
		return 1, err
	}
	if node.config, err = clientcmd.NewDefaultClientConfig(*kubeconfig, nil).ClientConfig(); err != nil {
		return 1, err
	}
	node.config.QPS, node.config.Burst = -1, 0
	if node.tls, err = rest.TLSConfigFor(node.config); err != nil {
		return 1, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.CABundlePEM())
	node.tls.RootCAs = pool
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
