package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

const (
	namespace   = "unipod"
	snapshotter = "overlayfs"

	// debtFile exists while garbage collection is owed: from before something
	// is given up until its collection is done.
	debtFile = "gc-owed"
)

// Config says where a store lives and how it reaches registries. Empty fields
// mean their default; paths of configuration that do not exist mean an empty
// configuration.
type Config struct {
	// Root is the store's own directory; it survives a reboot.
	Root string
	// Run is the store's own directory for what a reboot ends (a tmpfs): which
	// containers use which image.
	Run string

	// RegistriesConf is a registries.conf (containers-registries.conf(5)),
	// default the first of /etc/unipod/registries.conf and
	// /etc/containers/registries.conf. Its drop-in directory is RegistriesConf
	// with ".d" appended.
	RegistriesConf string
	// CertsDirs hold a directory per registry with hosts.toml or certificates;
	// the first that has one for a registry is used. Default
	// /etc/unipod/certs.d, /etc/containerd/certs.d, /etc/docker/certs.d.
	CertsDirs []string
	// AuthFile holds credentials (containers-auth.json(5)), default the user's
	// auth.json, then ~/.docker/config.json.
	AuthFile string
	// PolicyFile says which images may be pulled (containers-policy.json(5)),
	// default the first of /etc/unipod/policy.json and
	// /etc/containers/policy.json. Without one every image is accepted.
	PolicyFile string
	// LookasideDir configures where signatures are stored
	// (containers-registries.d(5)), default /etc/containers/registries.d.
	LookasideDir string

	// Platform of images to pull, default that of the machine.
	Platform string
	// Pinned are references of images that Prune never removes and kubelets
	// are told not to.
	Pinned []string
	// StallTimeout is how long a registry may send nothing before a request is
	// given up, default 60 s.
	StallTimeout time.Duration
	// Downloads and Unpacks are how many layers are downloaded and unpacked at
	// the same time over all pulls, defaults 4 and the number of processors
	// (at least 2).
	Downloads, Unpacks int

	// KeepPartial is how long the downloads of a failed pull wait for the next
	// attempt, default 10 min; negative not at all.
	KeepPartial time.Duration

	Clock  clock.WithDelayedExecution
	Logger *slog.Logger
}

// Store is an open image store.
type Store struct {
	cfg      Config
	log      *slog.Logger
	platform platforms.MatchComparer
	pinned   map[string]bool

	lock    *os.File
	bolt    *bolt.DB
	backend snapshots.Snapshotter

	db        *metadata.DB
	content   content.Store
	snapshots snapshots.Snapshotter
	images    images.Store
	leases    leases.Manager

	downloads, unpacks, loads *semaphore.Weighted

	chains  keyedLock
	flights flights
	parking parking

	mu    sync.RWMutex
	index index
	pins  pins

	lowerCache sync.Map // chain ID -> []string

	gcMu     sync.Mutex // one collection at a time
	debt     debt       // guarded by gcMu, like the next
	gcFailed bool       // the last collection left something on the disk
	work     sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
}

// Open takes possession of the store at cfg.Root, creating it if necessary,
// and cleans up what a crash left. Another process that has it open is
// errdefs.ErrUnavailable, at once.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Root == "" || cfg.Run == "" {
		return nil, fmt.Errorf("image store: Root and Run must be given: %w", errdefs.ErrInvalidArgument)
	}
	cfg.setDefaults()
	quietLibraries(cfg.Logger)
	s := &Store{
		cfg:       cfg,
		log:       cfg.Logger,
		downloads: semaphore.NewWeighted(int64(cfg.Downloads)),
		unpacks:   semaphore.NewWeighted(int64(cfg.Unpacks)),
		loads:     semaphore.NewWeighted(1),
		pinned:    make(map[string]bool),
	}
	p := platforms.DefaultSpec()
	if cfg.Platform != "" {
		if p, err = platforms.Parse(cfg.Platform); err != nil {
			return nil, fmt.Errorf("image platform %q: %w", cfg.Platform, err)
		}
	}
	s.platform = platforms.Only(p)
	for _, ref := range cfg.Pinned {
		n, err := normalize(ref)
		if err != nil {
			return nil, fmt.Errorf("pinned image: %w", err)
		}
		s.pinned[n.String()] = true
	}
	for _, dir := range []string{cfg.Root, cfg.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if s.lock, err = lockStore(cfg.Root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := s.openBackends(); err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", cfg.Root, err)
	}
	ctx = scope(ctx)
	if err := s.pins.load(filepath.Join(cfg.Run, "owners")); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("cleaning image store %s after a crash: %w", cfg.Root, err)
	}
	s.ballast()
	if err := s.loadIndex(ctx); err != nil {
		return nil, fmt.Errorf("reading image store %s: %w", cfg.Root, err)
	}
	return s, nil
}

// scope prepares a context for containerd's libraries.
func scope(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

func (s *Store) openBackends() error {
	blobs, err := local.NewStore(filepath.Join(s.cfg.Root, "content"))
	if err != nil {
		return err
	}
	s.backend, err = overlay.NewSnapshotter(filepath.Join(s.cfg.Root, snapshotter), overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return err
	}
	// The lock on the directory is ours, so bolt's own can only be held by
	// something that is not unipod: do not wait for it.
	s.bolt, err = bolt.Open(filepath.Join(s.cfg.Root, "meta.db"), 0o600, &bolt.Options{
		Timeout:      time.Second,
		FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		return fmt.Errorf("opening meta.db: %w", err)
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotter: s.backend})
	if err := s.db.Init(context.Background()); err != nil {
		return err
	}
	s.content = s.db.ContentStore()
	s.snapshots = s.db.Snapshotter(snapshotter)
	s.images = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	return nil
}

// Close waits for what runs in the background and gives the store up. Pulls
// must have ended. Closing again does nothing.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	errs := []error{s.clearParking(context.Background())}
	s.work.Wait()
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	if s.backend != nil {
		errs = append(errs, s.backend.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// lockStore makes this process the owner of root until the file is closed or
// the process ends, however it ends.
func lockStore(root string) (_ *os.File, err error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, fmt.Errorf("image store %s is in use by %s: stop it, or use the images through it: %w", root, holder(f), errdefs.ErrUnavailable)
	case err != nil:
		return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		return nil, err
	}
	return f, nil
}

func holder(f *os.File) string {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	pid := strings.TrimSpace(string(buf[:n]))
	if pid == "" {
		return "another process"
	}
	comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(comm)))
}

// firstExisting returns the first path that exists, or "".
func firstExisting(paths ...string) string {
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			return p
		}
	}
	return ""
}
