// Package runtime is the lower half of the house: sandboxes and containers
// as the CRI defines them, made by one pause process per pod that carries
// recipes out.
//
// It owns Run/sandboxes and Run/containers (records, sockets, recipes),
// Root/containers (writable layers), and the processes, cgroups, networks and
// mounts of every pod. It promises:
//   - a record is on disk before what it describes is made and goes after it,
//     so that a node killed at any instant and started anew ([Open]) adopts
//     every finished sandbox and container and undoes every unfinished one;
//   - an RPC that answered is true: what it made runs, what it removed is
//     gone (a veth's deletion alone happens behind the answer);
//   - an exit is kept, with its code and times, until RemoveContainer.
//
// Every method of [Runtime] may be called concurrently. Calls about one
// container are carried out one after another.
//
// Floor: 3. It imports recipe, cgroup, security, network, image, pause,
// crilog, sys, and implements cri.Service.
package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/network"
	"unipod.dev/unipod/internal/security/caps"
)

// Config is what a Runtime is made of. The Runtime uses the stores it is
// given; who made them closes them after [Runtime.Close].
type Config struct {
	Root string // survives a reboot: writable layers
	Run  string // on tmpfs: records and sockets

	Images  *image.Store
	Network network.Plugin
	Cgroups *cgroup.Hierarchy

	// StreamAddr is the loopback address that exec, attach and port-forward
	// are served on; "" means 127.0.0.1:0.
	StreamAddr string
	// StreamCert and StreamKey are PEM files; with them the streams are served
	// over TLS.
	StreamCert, StreamKey string
	// SeccompProfileRoot is where Localhost profiles are looked up when the
	// request names no absolute path.
	SeccompProfileRoot string

	Log *slog.Logger
}

// Runtime implements [cri.Service].
type Runtime struct {
	cfg    Config
	log    *slog.Logger
	events *eventHub
	stream *streamServer
	cpu    *cpuSampler

	mu         sync.Mutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	names      map[string]string // reserved name -> ID

	background sync.WaitGroup // watchers of pause processes
	closing    chan struct{}
}

var _ cri.Service = (*Runtime)(nil)

// Open starts the runtime on its directories: it adopts the pods that run and
// undoes what an earlier node left half made.
func Open(ctx context.Context, cfg Config) (*Runtime, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	for _, dir := range []string{
		filepath.Join(cfg.Run, "sandboxes"), filepath.Join(cfg.Run, "containers"), filepath.Join(cfg.Root, "containers"),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the runtime's directory: %w", err)
		}
	}
	r := &Runtime{
		cfg:        cfg,
		log:        cfg.Log,
		events:     newEventHub(),
		cpu:        newCPUSampler(),
		sandboxes:  map[string]*sandbox{},
		containers: map[string]*container{},
		names:      map[string]string{},
		closing:    make(chan struct{}),
	}
	if caps.All()&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		r.log.Info("without CAP_SYS_RESOURCE the kernel refuses to lower OOM scores and to raise resource limits; containers run without")
	}
	stream, err := newStreamServer(r, cfg)
	if err != nil {
		return nil, err
	}
	r.stream = stream
	if err := r.reconcile(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close lets go of every pod without touching it: pause keeps what a later
// node needs.
func (r *Runtime) Close() error {
	close(r.closing)
	err := r.stream.close()
	r.mu.Lock()
	for _, s := range r.sandboxes {
		s.disconnect()
	}
	r.mu.Unlock()
	r.background.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		c.letGo()
	}
	r.events.close()
	return err
}

// newID returns a random 64-digit ID, the form of every CRI runtime's.
func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// toGRPC gives the error of an RPC its gRPC status code; the one place where
// this happens.
func toGRPC(err *error) {
	if *err != nil {
		*err = cri.ToGRPC(*err)
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// reserve takes name for id until release. A name that is taken is an error
// that says by whom: the same sandbox or container is never made twice.
func (r *Runtime) reserve(kind, name, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner, taken := r.names[name]; taken && owner != id {
		return fmt.Errorf("failed to reserve %s name %q: name %q is reserved for %q: %w", kind, name, name, owner, errdefs.ErrAlreadyExists)
	}
	r.names[name] = id
	return nil
}

func (r *Runtime) release(name string) {
	r.mu.Lock()
	delete(r.names, name)
	r.mu.Unlock()
}

func (r *Runtime) sandbox(id string) (*sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return lookup(r.sandboxes, "sandbox", id)
}

func (r *Runtime) container(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return lookup(r.containers, "container", id)
}

// lookup finds by ID or by an unambiguous beginning of one.
func lookup[T any](m map[string]T, kind, id string) (T, error) {
	var found T
	if v, ok := m[id]; ok {
		return v, nil
	}
	if id == "" {
		return found, invalid("%s ID is empty", kind)
	}
	n := 0
	for full, v := range m {
		if strings.HasPrefix(full, id) {
			found = v
			n++
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return found, fmt.Errorf("%s %q: %w", kind, id, errdefs.ErrNotFound)
	}
	var none T
	return none, invalid("%s ID %q is ambiguous: %d begin so", kind, id, n)
}

func (r *Runtime) allSandboxes() []*sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*sandbox, 0, len(r.sandboxes))
	for _, s := range r.sandboxes {
		out = append(out, s)
	}
	return out
}

func (r *Runtime) allContainers() []*container {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*container, 0, len(r.containers))
	for _, c := range r.containers {
		out = append(out, c)
	}
	return out
}

// containersOf returns the containers of a sandbox.
func (r *Runtime) containersOf(sandboxID string) []*container {
	var out []*container
	for _, c := range r.allContainers() {
		if c.sandbox.id == sandboxID {
			out = append(out, c)
		}
	}
	return out
}

// undo collects what to take back when a later step fails, in reverse.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

func (u *undo) run() {
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
}

// detached returns a context for undoing that outlives the caller's, who may
// have gone, yet not forever.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}
