package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const (
	// leaseWork holds what a pull or load has so far; it never outlives the
	// process that made it.
	leaseWork = "work-"
	// leaseRetain holds the layers of an image that was removed while
	// containers used it.
	leaseRetain = "retain-"
	// leaseRecover makes the collector look at what is on the disk, too.
	leaseRecover = "recover"
)

// debt counts the operations that owe a collection; guarded by Store.gcMu.
type debt int

// owe records on disk that a collection is due, before anything is given up.
func (s *Store) owe() error {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	if err := s.lighten(); err != nil {
		return err
	}
	s.debt++
	if s.debt > 1 {
		return nil
	}
	path := filepath.Join(s.cfg.Root, debtFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		s.debt--
		return err
	}
	defer f.Close()
	return syncDir(s.cfg.Root)
}

// pay collects garbage and settles one debt. If that fails the record of it
// stays until a later collection succeeds.
func (s *Store) pay(ctx context.Context) error {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	s.debt--
	// What is given up cannot be asked for again, so nothing of it comes back
	// into the cache.
	s.lowerCache.Clear()
	ctx = context.WithoutCancel(ctx)
	if s.gcFailed {
		l, err := s.touchBackends(ctx)
		if err == nil {
			err = s.leases.Delete(ctx, l)
		}
		if err != nil {
			return fmt.Errorf("collecting garbage: %w", err)
		}
	}
	var failures failureLog
	_, err := s.db.GarbageCollect(log.WithLogger(ctx, failures.entry()))
	if err = errors.Join(err, failures.err()); err != nil {
		s.gcFailed = true
		return fmt.Errorf("collecting garbage: %w", err)
	}
	s.gcFailed = false
	s.ballast()
	if s.debt > 0 {
		return nil
	}
	err = os.Remove(filepath.Join(s.cfg.Root, debtFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// failureLog finds out what the collector failed to remove from the disk: it
// only logs that.
type failureLog struct {
	mu   sync.Mutex
	errs []error
}

func (f *failureLog) entry() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	l.AddHook(f)
	return logrus.NewEntry(l)
}

func (f *failureLog) Levels() []logrus.Level { return logrus.AllLevels }

func (f *failureLog) Fire(e *logrus.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err, _ := e.Data[logrus.ErrorKey].(error)
	f.errs = append(f.errs, fmt.Errorf("%s: %w", e.Message, err))
	return nil
}

func (f *failureLog) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

// payLater is pay for those who cannot wait. Close waits for it.
func (s *Store) payLater(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	s.work.Go(func() {
		if err := s.pay(ctx); err != nil {
			s.log.Warn("image garbage collection failed; it will be tried again", "error", err)
		}
	})
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// recover removes what an interrupted process left: leases of its work, what
// they held, and files that never got into the database.
func (s *Store) recover(ctx context.Context) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	var stale []leases.Lease
	for _, l := range all {
		if id, ok := strings.CutPrefix(l.ID, leaseRetain); ok && s.pins.used("sha256:"+id) {
			s.pins.setRetained("sha256:"+id, true)
			continue
		}
		stale = append(stale, l)
	}
	_, err = os.Lstat(filepath.Join(s.cfg.Root, debtFile))
	if len(stale) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s.log.Info("removing what an interrupted image operation left", "leases", len(stale))
	if err := s.owe(); err != nil {
		return err
	}
	// What was half made when the process died is in the way of the
	// libraries: unfinished blobs, and directories that were not recorded.
	// Nobody is going to finish them.
	if err := removeChildren(filepath.Join(s.cfg.Root, "content", "ingest")); err != nil {
		return err
	}
	if c, ok := s.backend.(snapshots.Cleaner); ok {
		err := c.Cleanup(ctx)
		if errdefs.IsNotFound(err) { // not one was ever recorded
			err = removeChildren(filepath.Join(s.cfg.Root, snapshotter, "snapshots"))
		}
		if err != nil {
			return err
		}
	}
	l, err := s.touchBackends(ctx)
	if err != nil {
		return err
	}
	stale = append(stale, l)
	for _, l := range stale {
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return s.pay(ctx)
}

func removeChildren(dir string) error {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// touchBackends makes a snapshot and an unfinished blob that are garbage when
// the returned lease is deleted. The collector compares a backend with the
// database only when it removes something from it.
func (s *Store) touchBackends(ctx context.Context) (leases.Lease, error) {
	l := leases.Lease{ID: leaseRecover}
	if _, err := s.leases.Create(ctx, leases.WithID(l.ID)); err != nil && !errdefs.IsAlreadyExists(err) {
		return l, err
	}
	ctx = leases.WithLease(ctx, l.ID)
	if _, err := s.snapshots.Prepare(ctx, leaseRecover, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return l, err
	}
	w, err := content.OpenWriter(ctx, s.content, content.WithRef(leaseRecover))
	if err != nil {
		return l, err
	}
	return l, w.Close()
}

// lease protects what is stored with the returned context until release is
// called, which collects what nothing refers to then.
func (s *Store) lease(ctx context.Context) (_ context.Context, release func() error, err error) {
	l, err := s.newLease(ctx)
	if err != nil {
		return nil, nil, err
	}
	done := context.WithoutCancel(ctx)
	return leases.WithLease(ctx, l.ID), func() error { return s.drop(done, l) }, nil
}

func (s *Store) newLease(ctx context.Context) (leases.Lease, error) {
	l, err := s.leases.Create(ctx, leases.WithRandomID(), func(l *leases.Lease) error {
		l.ID = leaseWork + l.ID
		return nil
	})
	if err != nil {
		return l, fmt.Errorf("creating a lease: %w", err)
	}
	return l, nil
}

// drop deletes leases and collects what they held.
func (s *Store) drop(ctx context.Context, all ...leases.Lease) error {
	if err := s.owe(); err != nil {
		return err
	}
	for _, l := range all {
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("deleting a lease: %w", err)
		}
	}
	return s.pay(ctx)
}

// syncFS writes everything of the file system that holds dir to the disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}
