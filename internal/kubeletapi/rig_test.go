package kubeletapi

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/client"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/agent"
	"unipod.dev/unipod/internal/agent/objects"
	"unipod.dev/unipod/internal/agent/register"
	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/machine"
	"unipod.dev/unipod/internal/node"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/scheduler"
	"unipod.dev/unipod/internal/stats"
	"unipod.dev/unipod/internal/store"
)

const demo = "localhost/unipod-demo:1"

// rig is a whole node: runtime, engine, API, scheduler, agent, kubelet's HTTP.
type rig struct {
	t       testing.TB
	dir     string
	log     *slog.Logger
	api     kubernetes.Interface // in this process
	remote  *rest.Config         // over TLS, as kubectl
	kubelet string               // its address
	dialled atomic.Bool          // the API asks the kubelet whose streams are dialled
	keys    *pki.Authority
	name    string
	engine  *engine.Engine
	// runs go on until the test is over.
	runs []func(context.Context) error
}

// kubelets tells the API where its one kubelet is.
type kubelets struct {
	keys *pki.Authority
	port func() string
}

func (k kubelets) GetConnectionInfo(context.Context, types.NodeName) (*client.ConnectionInfo, error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: k.keys.CAPool(), ServerName: "localhost", GetClientCertificate: k.keys.KubeletClient().GetClientCertificate,
	}}
	return &client.ConnectionInfo{Scheme: "https", Hostname: "127.0.0.1", Port: k.port(), Transport: transport, InsecureSkipTLSVerifyTransport: transport}, nil
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making pods needs root")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("the test image is made of busybox, which is missing")
	}
	dir, err := os.MkdirTemp("", "kubeletapi")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{t: t, name: "rig", dir: dir, log: slog.New(slog.DiscardHandler)}
	if os.Getenv("RIG_LOG") != "" {
		r.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := r.openRuntime(ctx)
	at, dialled := r.listen(), r.listen()
	r.kubelet = at.Addr().String()
	s := r.openAPI(ctx, func() string {
		l := at
		if r.dialled.Load() {
			l = dialled
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	})
	ready := r.openKubelet(n, s, at, dialled)
	var group sync.WaitGroup
	for _, run := range r.runs {
		group.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); group.Wait() })
	<-ready
	// A node is tainted until the controllers, which aren't here, find it ready.
	_, err = r.api.CoreV1().Nodes().Patch(ctx, r.name, types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{})
	must(t, err)
	_, err = r.api.CoreV1().ServiceAccounts("default").Create(ctx, &v1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "default"}, AutomountServiceAccountToken: ptr.To(false),
	}, metav1.CreateOptions{})
	must(t, err)
	return r
}

func (r *rig) listen() net.Listener {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	return l
}

// openRuntime is the lower half, with the demo's image.
func (r *rig) openRuntime(ctx context.Context) *node.Node {
	r.t.Helper()
	n, err := node.Open(ctx, node.Config{
		Root: filepath.Join(r.dir, "root"), Run: filepath.Join(r.dir, "run"), Bridge: "unipodtest0", IPv4: "10.77.0.0/16", IPv6: "fd00:77::/64", Log: r.log,
	})
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, n.Close(context.Background())) })
	tar := filepath.Join(r.dir, "image.tar")
	if out, err := exec.Command("../../examples/demo/image.sh", demo, tar).CombinedOutput(); err != nil {
		r.t.Fatalf("making the image: %v\n%s", err, out)
	}
	f, err := os.Open(tar)
	must(r.t, err)
	_, err = n.Images().Load(ctx, f, "", nil)
	must(r.t, errors.Join(err, f.Close()))
	return n
}

// openAPI is an API that finds kubelet at a port, its clients and a scheduler.
func (r *rig) openAPI(ctx context.Context, port func() string) *apiserver.Server {
	r.t.Helper()
	var err error
	r.keys, err = pki.Open("", clock.RealClock{})
	must(r.t, err)
	st, err := store.Open(store.Config{Dir: filepath.Join(r.dir, "api")})
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, st.Close()) })
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	s, err := apiserver.New(ctx, apiserver.Config{
		Store: st, PKI: r.keys, ServiceCIDRs: []*net.IPNet{services}, Advertise: netip.MustParseAddrPort("192.0.2.1:6443"), Log: r.log,
		Kubelet: kubelets{r.keys, port},
	})
	must(r.t, err)
	r.t.Cleanup(s.Close)
	must(r.t, s.Wait(ctx))
	config := s.Loopback()
	config.QPS = -1
	r.api = kubernetes.NewForConfigOrDie(config)
	l := r.listen()
	kubeconfig, err := r.keys.Kubeconfig("https://"+l.Addr().String(), r.keys.Admin())
	must(r.t, err)
	r.remote, err = clientcmd.NewDefaultClientConfig(*kubeconfig, nil).ClientConfig()
	must(r.t, err)
	r.runs = append(r.runs, func(ctx context.Context) error {
		return s.Serve(ctx, l, r.keys.Serving("api", "127.0.0.1").GetCertificate)
	}, func(ctx context.Context) error {
		return scheduler.Run(ctx, scheduler.Config{Client: s.Loopback(), Informers: s.Informers(), Making: &sync.Mutex{}, Log: r.log})
	})
	return s
}

// openKubelet is kubelet's part: engine, agent, the Node, and its HTTP twice,
// with streams by function calls and with dialled ones. Ready is closed when
// the API's pods are the engine's.
func (r *rig) openKubelet(n *node.Node, s *apiserver.Server, at, dialled net.Listener) (ready <-chan struct{}) {
	r.t.Helper()
	shared := s.Informers()
	sources := objects.New(objects.Config{Client: r.api, Informers: shared, Node: r.name, Log: r.log})
	cfg := engine.Config{
		CRI: n.CRI(), Dir: filepath.Join(r.dir, "root", "pods"), LogDir: filepath.Join(r.dir, "root", "logs"), NodeName: r.name,
		Objects: sources, Services: sources.Services, Logger: r.log,
	}
	var err error
	cfg.Node, err = machine.Describe(r.dir)
	must(r.t, err)
	cfg.Volumes.Token, cfg.Volumes.Claim = sources.Token, sources.Claim
	r.engine, err = engine.New(cfg)
	must(r.t, err)
	object, err := register.New(register.Config{
		Client: r.api, CRI: n.CRI(), Name: r.name, Version: "v1.37.2", Root: r.dir, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Log: r.log,
	})
	must(r.t, err)
	a, err := agent.New(agent.Config{Client: r.api, Informers: shared, NodeName: r.name, Engine: r.engine, Objects: sources, Node: object, Log: r.log})
	must(r.t, err)
	conf := Config{
		NodeName: r.name, Client: r.api, ClientCA: r.keys, CRI: n.CRI(), Pods: r.engine.Pods, Streams: n.Streams(), Watch: agent.Changes(r.engine), Probes: r.engine.ProbeCounts, Log: r.log,
		Stats: stats.New(stats.Config{CRI: n.CRI(), NodeName: r.name, PodsDir: cfg.Dir, LogDir: cfg.LogDir, Pods: r.engine.Pods, Volumes: r.engine.Usages, Log: r.log}),
	}
	r.runs = append(r.runs, r.engine.Run, object.Run, a.Run, r.serve(conf, at))
	conf.Streams = nil
	r.runs = append(r.runs, r.serve(conf, dialled))
	return a.Ready()
}

// serve is kubelet's HTTP on a listener.
func (r *rig) serve(conf Config, l net.Listener) func(context.Context) error {
	r.t.Helper()
	s, err := New(conf)
	must(r.t, err)
	srv := &http.Server{Handler: s.Handler(), TLSConfig: &tls.Config{
		ClientAuth: tls.RequestClientCert, GetCertificate: r.keys.NodeServing(r.name, "127.0.0.1", "localhost").GetCertificate,
	}, ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug)}
	return func(ctx context.Context) error {
		go func() { <-ctx.Done(); srv.Close() }()
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func demoPod(name, script string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.PodSpec{TerminationGracePeriodSeconds: ptr.To[int64](0), Containers: []v1.Container{{
			Name: "main", Image: demo, Command: []string{"/bin/sh", "-c", script}, Stdin: true,
		}}},
	}
}

// start creates a pod and waits until a watch shows it ready.
func (r *rig) start(pod *v1.Pod) *v1.Pod {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	pods := r.api.CoreV1().Pods("default")
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + pod.Name})
	must(r.t, err)
	defer w.Stop()
	_, err = pods.Create(ctx, pod, metav1.CreateOptions{})
	must(r.t, err)
	for ev := range w.ResultChan() {
		if p, ok := ev.Object.(*v1.Pod); ok && podutil.IsPodReady(p) {
			return p
		}
	}
	last, err := pods.Get(context.Background(), pod.Name, metav1.GetOptions{})
	r.t.Fatalf("pod %s never gets ready (%v): %+v", pod.Name, err, last)
	return nil
}

// remove deletes a pod and waits until it is gone.
func (r *rig) remove(name string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	pods := r.api.CoreV1().Pods("default")
	now, err := pods.Get(ctx, name, metav1.GetOptions{})
	must(r.t, err)
	// From a known version on: what a watch without one shows first is what
	// there is when it gets round to it.
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: now.ResourceVersion})
	must(r.t, err)
	defer w.Stop()
	must(r.t, pods.Delete(ctx, name, metav1.DeleteOptions{}))
	for ev := range w.ResultChan() {
		if ev.Type == watch.Deleted {
			return
		}
	}
	r.t.Fatalf("pod %s is never gone", name)
}

func (r *rig) logs(name string, o *v1.PodLogOptions) (string, error) {
	c, err := kubernetes.NewForConfig(r.remote)
	must(r.t, err)
	text, err := c.CoreV1().Pods("default").GetLogs(name, o).DoRaw(context.Background())
	return string(text), err
}

// executor connects as kubectl does: by WebSocket, or as it did: by SPDY.
func (r *rig) executor(kind, pod, sub string, o runtime.Object) remotecommand.Executor {
	r.t.Helper()
	c, err := kubernetes.NewForConfig(r.remote)
	must(r.t, err)
	u := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource(sub).
		VersionedParams(o, scheme.ParameterCodec).URL()
	var e remotecommand.Executor
	if kind == "spdy" {
		e, err = remotecommand.NewSPDYExecutor(r.remote, http.MethodPost, u)
	} else {
		e, err = remotecommand.NewWebSocketExecutor(r.remote, http.MethodGet, u.String())
	}
	must(r.t, err)
	return e
}
