package static

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/manifest"
)

const (
	// settle is how long the directory must be quiet before a change is believed
	// that may be half of one: a removal may be the first half of a replacement,
	// and a file that names others may come before them.
	settle = 100 * time.Millisecond
	// rewatch is how often a directory is looked for that was taken away.
	rewatch = time.Second
)

// directory is a source of manifests.
type directory struct {
	path  string
	clock clock.WithTicker
	log   *slog.Logger
}

func (d *directory) name() string { return d.path }
func (d *directory) kind() string { return kubetypes.FileSource }

// load reads the directory; an empty one is no error.
func (d *directory) load() (*manifest.Objects, error) {
	entries, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return isManifest(e.Name()) }) {
		return &manifest.Objects{}, nil
	}
	if err != nil {
		return nil, err
	}
	return manifest.Loader{UID: manifest.StaticUID}.Load([]string{d.path}, nil)
}

// loadable is what is in the files that can be read, where others can't; nil
// when even that makes no sense together.
func (d *directory) loadable() *manifest.Objects {
	loader := manifest.Loader{UID: manifest.StaticUID}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil
	}
	var good []string
	for _, entry := range entries {
		path := filepath.Join(d.path, entry.Name())
		if !isManifest(path) {
			continue
		}
		if _, err := loader.Load([]string{path}, nil); err == nil {
			good = append(good, path)
		}
	}
	if len(good) == 0 {
		return nil
	}
	objects, err := loader.Load(good, nil)
	if err != nil {
		return nil
	}
	return objects
}

func isManifest(name string) bool {
	return slices.ContainsFunc([]string{".yaml", ".yml", ".json"}, func(ext string) bool { return strings.HasSuffix(name, ext) })
}

// watch hands out what the directory holds, at first and after every change,
// until ctx ends.
func (d *directory) watch(ctx context.Context, out chan<- reading) error {
	if err := os.MkdirAll(d.path, 0o755); err != nil {
		return fmt.Errorf("the directory of manifests: %w", err)
	}
	w, err := d.open()
	if err != nil {
		return err
	}
	defer func() { w.close() }()
	events := w.events
	objects, err := d.load()
	if err != nil {
		objects = d.loadable()
	}
	if !send(ctx, out, reading{objects, err}) {
		return nil
	}
	busy := newBusy()
	var quiet, again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-events:
			switch {
			case !ok:
				// The directory itself is gone; what it held is, too.
				w.close()
				events = nil
				again = d.clock.After(rewatch)
				quiet = d.clock.After(settle)
			case ev.overflow:
				busy = newBusy()
				quiet = d.clock.After(settle)
			case !isManifest(ev.name):
			case busy.after(ev):
				// Complete as it is, unless it names what has yet to come.
				if objects, err := d.load(); err == nil && len(objects.Warnings) == 0 {
					quiet = nil
					if !send(ctx, out, reading{objects, nil}) {
						return nil
					}
					continue
				}
				quiet = d.clock.After(settle)
			default:
				quiet = d.clock.After(settle)
			}
		case <-quiet:
			quiet, busy = nil, newBusy()
			objects, err := d.load()
			if !send(ctx, out, reading{objects, err}) {
				return nil
			}
		case <-again:
			next, err := d.open()
			if err != nil {
				again = d.clock.After(rewatch)
				continue
			}
			w, events, again = next, next.events, nil
			quiet = d.clock.After(settle)
		}
	}
}

// send hands a reading out, unless ctx ends first.
func send(ctx context.Context, out chan<- reading, r reading) bool {
	select {
	case out <- r:
		return true
	case <-ctx.Done():
		return false
	}
}

// busy knows which files are being written, and whether one went.
type busy struct {
	writing map[string]bool
	gone    bool
}

func newBusy() *busy { return &busy{writing: map[string]bool{}} }

// after takes an event in and reports whether every file is whole.
func (b *busy) after(ev change) bool {
	switch ev.what {
	case written:
		delete(b.writing, ev.name)
	case writing:
		b.writing[ev.name] = true
	case gone:
		delete(b.writing, ev.name)
		b.gone = true
	}
	return ev.what == written && len(b.writing) == 0 && !b.gone
}

// change is what happened to a file.
type change struct {
	name     string
	what     int
	overflow bool // and to others, nobody knows which
}

const (
	written = iota // closed by who wrote it, or moved in
	writing
	gone
)

// watcher tells of changes in a directory; its channel is closed when the
// directory is gone.
type watcher struct {
	f      *os.File
	events chan change
	stop   chan struct{}
	done   chan struct{}
}

// open begins to watch the directory. fsnotify would not tell when a file is
// complete: only the kernel's own words do.
func (d *directory) open() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching %s: inotify: %w", d.path, err)
	}
	const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CREATE | unix.IN_MODIFY |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, d.path, mask); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watching %s: %w", d.path, err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), events: make(chan change), stop: make(chan struct{}), done: make(chan struct{})}
	go w.read(d)
	return w, nil
}

// close ends the watcher; it may be called again.
func (w *watcher) close() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	w.f.Close()
	<-w.done
}

func (w *watcher) read(d *directory) {
	defer close(w.done)
	defer close(w.events)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				d.log.Error("watching the directory of manifests", "dir", d.path, "err", err)
			}
			return
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			raw := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
			end := unix.SizeofInotifyEvent + int(raw.Len)
			name := strings.TrimRight(string(rest[unix.SizeofInotifyEvent:end]), "\x00")
			rest = rest[end:]
			if raw.Mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0 {
				return
			}
			select {
			case w.events <- change{name, what(d.path, name, raw.Mask), raw.Mask&unix.IN_Q_OVERFLOW != 0}:
			case <-w.stop:
				return
			}
		}
	}
}

func what(dir, name string, mask uint32) int {
	switch {
	case mask&(unix.IN_MOVED_FROM|unix.IN_DELETE) != 0:
		return gone
	case mask&(unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO) != 0:
		return written
	}
	// A link is whole when it is made: nobody will close it.
	var st unix.Stat_t
	if mask&unix.IN_CREATE != 0 && unix.Lstat(dir+"/"+name, &st) == nil && (st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Nlink > 1) {
		return written
	}
	return writing
}
