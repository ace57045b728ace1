// Package apibench measures a Kubernetes API as its clients meet it: how long
// its process takes to be ready, what it holds in memory when idle, its writes
// and reads over https, and, where there is a node behind it, how long it takes
// from a manifest to containers.
//
// It promises that figures are of whole requests by an ordinary client, that
// the servers it starts are ended and their directories removed, and that what
// it couldn't measure is said. It owns the namespace [Namespace] of the
// servers it measures.
//
// Floor: 10, a face. It knows the API by client-go, and servers by their
// command lines.
package apibench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"unipod.dev/unipod/internal/bench"
)

// Namespace is that of the objects a bench makes.
const Namespace = "unipod-bench"

// Options say how much is measured.
type Options struct {
	Starts   int           `json:"starts"`   // of the server, on the data of the first
	Idle     time.Duration `json:"-"`        // how long it is left alone before its memory is read
	Objects  int           `json:"objects"`  // requests of each kind, one after another
	Parallel int           `json:"parallel"` // clients that write at the same time
	Pods     int           `json:"pods"`     // one after another, where there is a node
	Replicas int           `json:"replicas"` // of a Deployment, where there is a node
}

// A Server is an API that can be started and ended.
type Server interface {
	Name() string
	// Start starts its processes, on the same data each time, and returns as
	// soon as they run; the API answers a little later.
	Start(ctx context.Context) error
	// Client reaches it.
	Client() (*rest.Config, error)
	// PIDs are its processes'.
	PIDs() []int
	// Stop ends them; Remove takes their data away.
	Stop() error
	Remove() error
	// Image is what pods may run (with sleep in it); "" is a server without a
	// node.
	Image(ctx context.Context) (string, error)
	// Idle tells whether nothing is left of any pod on the node.
	Idle() (bool, error)
}

// Figures are what was measured of one server.
type Figures struct {
	Name string `json:"name"`

	// Ready is from the process's start to /readyz.
	Ready bench.Times `json:"ready,omitzero"`
	// RSS and Anon are bytes, of all its processes together, idle.
	RSS  int64 `json:"rssBytes,omitempty"`
	Anon int64 `json:"anonBytes,omitempty"`

	Create bench.Times `json:"create,omitzero"`
	Get    bench.Times `json:"get,omitzero"`
	Update bench.Times `json:"update,omitzero"`
	Delete bench.Times `json:"delete,omitzero"`
	// Watch is from the request's start to the event at another client.
	Watch bench.Times `json:"watch,omitzero"`
	// CreatesPerSecond is of Options.Parallel clients.
	CreatesPerSecond float64 `json:"createsPerSecond,omitempty"`

	// Running is from a pod's creation to a watch that shows it Running.
	Running bench.Times `json:"podRunning,omitzero"`
	// AllReady is a Deployment's, AllGone from its deletion until nothing is
	// left of its pods, in the API and on the node.
	AllReady time.Duration `json:"deploymentReadyNs,omitempty"`
	AllGone  time.Duration `json:"deploymentGoneNs,omitempty"`

	// Failed says what could not be measured, and why.
	Failed []string `json:"failed,omitempty"`
}

// Measure measures a server from its first start to its removal.
func Measure(ctx context.Context, s Server, o Options) (f *Figures, err error) {
	f = &Figures{Name: s.Name()}
	defer func() { err = errors.Join(err, s.Stop(), s.Remove()) }()
	m := &measurer{Server: s, opts: o}
	if err := m.starts(ctx, f); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	for _, part := range []struct {
		name string
		do   func(context.Context, *Figures) error
	}{{"memory", m.memory}, {"requests", m.requests}, {"watch", m.watch}, {"throughput", m.throughput}, {"pods", m.pods}, {"deployment", m.deployment}} {
		if err := part.do(ctx, f); err != nil {
			f.Failed = append(f.Failed, part.name+": "+err.Error())
		}
	}
	return f, ctx.Err()
}

type measurer struct {
	Server
	opts   Options
	client kubernetes.Interface
}

// readyTimeout bounds a start.
const readyTimeout = 2 * time.Minute

// starts starts the server again and again; the last one stays.
func (m *measurer) starts(ctx context.Context, f *Figures) error {
	var all []time.Duration
	// The first start makes keys and roles; later ones are what a node does.
	for i := range m.opts.Starts + 1 {
		if i > 0 {
			if err := m.Stop(); err != nil {
				return err
			}
		}
		at := time.Now()
		if err := m.Start(ctx); err != nil {
			return err
		}
		if err := m.awaitReady(ctx, at); err != nil {
			return err
		}
		if i > 0 {
			all = append(all, time.Since(at))
		}
	}
	f.Ready = bench.TimesOf(all)
	_, err := m.client.CoreV1().Namespaces().Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}, metav1.CreateOptions{})
	return err
}

func (m *measurer) awaitReady(ctx context.Context, since time.Time) error {
	for {
		config, err := m.Client()
		if err == nil {
			config.QPS = -1 // an ordinary client's own brake is not the server's
			if m.client, err = kubernetes.NewForConfig(config); err == nil {
				_, err = m.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
			}
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Since(since) > readyTimeout {
			return fmt.Errorf("not ready: %w", errors.Join(ctx.Err(), err))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// memory reads what its processes hold when nobody asked anything for a while.
func (m *measurer) memory(ctx context.Context, f *Figures) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(m.opts.Idle):
	}
	for _, pid := range m.PIDs() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			switch {
			case err != nil:
			case key == "VmRSS":
				f.RSS += kib << 10
			case key == "RssAnon":
				f.Anon += kib << 10
			}
		}
	}
	return nil
}
