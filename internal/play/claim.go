package play

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/volume"
)

// Annotation names the play that made an object, or whose node runs a sandbox.
const Annotation = "unipod.dev/play"

const journalName = "objects.json"

// A Claim is the directory of one play, locked while the play lives. What
// it makes carries its name and is written down, so that the next play can tell
// what a killed one left behind ([Sweep]) from what another one still runs.
type Claim struct {
	name string
	dir  string
	lock *os.File
}

// NewClaim makes a claim below root, which is the node's.
func NewClaim(root string) (*Claim, error) {
	all := filepath.Join(root, "play")
	gate, err := closeGate(all)
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	c := &Claim{name: rand.String(10)}
	c.dir = filepath.Join(all, c.name)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the play's directory: %w", err)
	}
	if c.lock, err = lock(filepath.Join(c.dir, "lock"), os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	return c, nil
}

// PodsDir is for the engine of a node that the play runs itself.
func (c *Claim) PodsDir() string { return filepath.Join(c.dir, "pods") }

// LogDir is where that writes logs.
func (c *Claim) LogDir() string { return filepath.Join(c.dir, "logs") }

// Name is what the play's objects are annotated with.
func (c *Claim) Name() string { return c.name }

// Journal writes down what the play has to remove, for whoever sweeps after it.
func (c *Claim) Journal(list []Made) error {
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	path := filepath.Join(c.dir, journalName)
	if err = os.WriteFile(path+".new", text, 0o600); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("writing down what the play makes: %w", err)
	}
	return nil
}

// Release removes the claim's directory and all below it.
func (c *Claim) Release(ctx context.Context) error {
	defer c.lock.Close()
	return removeDir(ctx, c.dir)
}

// EndPods removes what the play's own node, which has ended, has left of its
// pods in the runtime: an API's pod is gone a moment before its sandbox.
func (c *Claim) EndPods(ctx context.Context, runtime cri.Runtime) error {
	return removePods(ctx, runtime, c.name)
}

// Host says that the play runs the node, for others who use it ([HostLogs]).
func (c *Claim) Host() error { return os.MkdirAll(c.LogDir(), 0o700) }

// HostLogs is where the node of a living play writes logs; "" when no play
// runs one.
func HostLogs(root string) (string, error) {
	dirs, err := filepath.Glob(filepath.Join(root, "play", "*", "logs"))
	if err != nil {
		return "", err
	}
	for _, dir := range dirs {
		l, err := lock(filepath.Join(filepath.Dir(dir), "lock"), 0, unix.LOCK_SH|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return dir, nil
		}
		if err == nil {
			l.Close()
		}
	}
	return "", nil
}

// Others waits until no other play lives below the claim's root, calling
// waiting first when there is one. A play that started a node in its own
// process must outlive those that came to use it.
func (c *Claim) Others(ctx context.Context, waiting func()) error {
	done := make(chan error, 1)
	go func() { // abandoned when ctx ends first: flock can't be interrupted
		done <- c.others(waiting)
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-done:
		return err
	}
}

func (c *Claim) others(waiting func()) error {
	locks, err := filepath.Glob(filepath.Join(filepath.Dir(c.dir), "*", "lock"))
	if err != nil {
		return err
	}
	for _, path := range locks {
		if path == filepath.Join(c.dir, "lock") {
			continue
		}
		l, err := lock(path, 0, unix.LOCK_SH|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			waiting()
			l, err = lock(path, 0, unix.LOCK_SH)
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Sweep ends and removes what plays left behind that were killed: the pods of
// nodes they ran, and what they made in the API of another. Of the last it
// knows by their journals; with a nil client such plays wait for a later sweep.
func Sweep(ctx context.Context, root string, runtime cri.Runtime, client *rest.Config) error {
	all := filepath.Join(root, "play")
	gate, err := closeGate(all)
	if err != nil {
		return err
	}
	defer gate.Close()
	entries, err := os.ReadDir(all)
	if err != nil {
		return err
	}
	var failed error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(all, e.Name())
		l, err := lock(filepath.Join(dir, "lock"), os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // it lives
		}
		if err == nil {
			err = sweepOne(ctx, dir, runtime, client)
			l.Close()
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("removing what an earlier play left in %s: %w", dir, err))
		}
	}
	return failed
}

// sweepOne removes what one play left.
func sweepOne(ctx context.Context, dir string, runtime cri.Runtime, client *rest.Config) error {
	_, err := os.Stat(filepath.Join(dir, journalName))
	switch {
	case err == nil && client == nil:
		return nil
	case err == nil:
		err = removeMade(ctx, client, dir)
	case errors.Is(err, fs.ErrNotExist):
		err = removePods(ctx, runtime, filepath.Base(dir))
	}
	if err != nil {
		return err
	}
	return removeDir(ctx, dir)
}

// removeMade removes what a journal in dir names, and waits for nothing.
func removeMade(ctx context.Context, client *rest.Config, dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		return err
	}
	var list []Made
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("%s: %w", journalName, err)
	}
	dyn, err := dynamic.NewForConfig(client)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(list) {
		var r dynamic.ResourceInterface = dyn.Resource(schema.GroupVersionResource{Group: m.Group, Version: m.Version, Resource: m.Resource})
		if m.Namespace != "" {
			r = r.(dynamic.NamespaceableResourceInterface).Namespace(m.Namespace)
		}
		opts := metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}
		if m.UID != "" {
			opts.Preconditions = &metav1.Preconditions{UID: &m.UID}
		} else if u, gerr := r.Get(ctx, m.Name, metav1.GetOptions{}); gerr != nil || u.GetAnnotations()[Annotation] != filepath.Base(dir) {
			continue // it was never made, or somebody else made it
		}
		if derr := r.Delete(ctx, m.Name, opts); derr != nil && !apierrors.IsNotFound(derr) && !apierrors.IsConflict(derr) {
			err = errors.Join(err, derr)
		}
	}
	return err
}

// removePods ends the pods of a play's own node that are left of it.
func removePods(ctx context.Context, runtime cri.Runtime, play string) error {
	list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, s := range list.GetItems() {
		if s.GetAnnotations()[Annotation] != play {
			continue
		}
		if _, serr := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		_, rerr := runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
		err = errors.Join(err, rerr)
	}
	return err
}

// removeDir removes a play's directory. Volumes go first and by their own
// ways: some are mounts.
func removeDir(ctx context.Context, dir string) error {
	pods := filepath.Join(dir, "pods")
	if _, err := os.Stat(pods); err == nil {
		m, err := volume.New(volume.Config{Dir: pods})
		if err != nil {
			return err
		}
		if err := m.CleanOrphans(ctx, nil); err != nil {
			return err
		}
		if err := noMounts(m.Dir); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// noMounts refuses when something is still mounted below dir: removing a
// directory must never reach into a volume that isn't ours.
func noMounts(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("%s is still mounted", f[4])
		}
	}
	return nil
}

// closeGate is held by whoever makes or removes claims.
func closeGate(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of plays: %w", err)
	}
	return lock(filepath.Join(dir, ".lock"), os.O_CREATE, unix.LOCK_EX)
}

func lock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
	}
}

// Marked is a runtime whose sandboxes carry the claim's name.
func (c *Claim) Marked(service cri.Service) cri.Service { return &marked{service, c.name} }

type marked struct {
	cri.Service
	name string
}

// RunPodSandbox implements cri.Runtime.
func (m *marked) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if cfg := req.GetConfig(); cfg != nil {
		annotations := map[string]string{Annotation: m.name}
		for k, v := range cfg.Annotations {
			if k != Annotation {
				annotations[k] = v
			}
		}
		// The config is the caller's: it isn't changed.
		next := proto.CloneOf(cfg)
		next.Annotations = annotations
		req = &runtimeapi.RunPodSandboxRequest{Config: next, RuntimeHandler: req.RuntimeHandler}
	}
	return m.Service.RunPodSandbox(ctx, req)
}

// Others are the pods that run when a play's own node starts: another's,
// which it leaves alone.
func Others(ctx context.Context, runtime cri.Runtime) (func(types.UID) bool, error) {
	list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	others := map[types.UID]bool{}
	for _, s := range list.GetItems() {
		others[types.UID(s.GetMetadata().GetUid())] = true
	}
	return func(uid types.UID) bool { return others[uid] }, nil
}
