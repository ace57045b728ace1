package play

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/volume"
)

// Annotation names the play a pod belongs to.
const Annotation = "unipod.dev/play"

// A Claim is the directory of one play, locked while the play lives. Its pods
// carry its name, so that the next play can tell what a killed one left
// behind ([Sweep]) from what another one still runs.
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

// PodsDir and LogDir are for the engine of the play.
func (c *Claim) PodsDir() string { return filepath.Join(c.dir, "pods") }

// LogDir is where the engine of the play writes logs.
func (c *Claim) LogDir() string { return filepath.Join(c.dir, "logs") }

// Mark makes a pod the play's.
func (c *Claim) Mark(pod *v1.Pod) {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[Annotation] = c.name
}

// Release removes the claim's directory and all below it.
func (c *Claim) Release(ctx context.Context) error {
	defer c.lock.Close()
	return removeDir(ctx, c.dir)
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

// Sweep ends and removes what plays left behind that were killed.
func Sweep(ctx context.Context, root string, runtime cri.Runtime) error {
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
			err = errors.Join(removePods(ctx, runtime, e.Name()), removeDir(ctx, dir))
			l.Close()
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("removing what an earlier play left in %s: %w", dir, err))
		}
	}
	return failed
}

// removePods ends the pods of a play that is gone.
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
