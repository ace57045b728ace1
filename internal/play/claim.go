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

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

// Annotation names the play that made an object.
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
func (c *Claim) Release() error {
	defer c.lock.Close()
	return os.RemoveAll(c.dir)
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

// Sweep removes what plays left behind in an API that were killed.
func Sweep(ctx context.Context, root string, client *rest.Config) error {
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
			if err = removeMade(ctx, client, dir); err == nil {
				err = os.RemoveAll(dir)
			}
			l.Close()
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("removing what an earlier play left in %s: %w", dir, err))
		}
	}
	return failed
}

// removeMade removes what a journal in dir names, and waits for nothing.
func removeMade(ctx context.Context, client *rest.Config, dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
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
