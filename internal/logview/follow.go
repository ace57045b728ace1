package logview

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say which lines are wanted.
type Options struct {
	Since  time.Time              // older lines are left out; zero for all
	Wanted func(name string) bool // which containers; nil for all
}

// A Follower reads the logs of one pod as they grow. It is used by one
// goroutine.
type Follower struct {
	dir     string
	opts    Options
	watcher *fsnotify.Watcher
	tails   map[string]*tail
}

// Follow starts to follow the logs in a pod's directory, which is made when
// it is missing (0755, as kubelet does): one can't watch what isn't there.
func Follow(dir string, opts Options) (*Follower, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("following logs: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("following logs: %w (fs.inotify.max_user_instances may be too low)", err)
	}
	if err := w.Add(dir); err != nil {
		w.Close()
		return nil, fmt.Errorf("following logs in %s: %w", dir, err)
	}
	return &Follower{dir: dir, opts: opts, watcher: w, tails: map[string]*tail{}}, nil
}

// Close releases what the follower holds.
func (f *Follower) Close() error {
	for _, t := range f.tails {
		t.close()
	}
	return f.watcher.Close()
}

// Run hands every line to each until ctx ends, then what was written until
// then, and returns. An error of each ends it.
func (f *Follower) Run(ctx context.Context, each func(Line) error) error {
	for {
		if err := f.Drain(each); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			if err := f.Drain(each); err != nil {
				return err
			}
			return f.flush(each)
		case err := <-f.watcher.Errors:
			// An overflow loses events, not lines: everything is looked at.
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("following logs in %s: %w", f.dir, err)
			}
		case <-f.watcher.Events:
			f.skipEvents()
		}
	}
}

// skipEvents takes the events that are there already: one look serves all.
func (f *Follower) skipEvents() {
	for {
		select {
		case <-f.watcher.Events:
		default:
			return
		}
	}
}

// Drain hands everything there is to read now to each.
func (f *Follower) Drain(each func(Line) error) error {
	for {
		if err := f.discover(); err != nil {
			return err
		}
		var read [][]Line
		more := false
		for _, name := range slices.Sorted(maps.Keys(f.tails)) {
			lines, again, err := f.tails[name].read()
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			read = append(read, lines)
			more = more || again
		}
		if err := f.emit(read, each); err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}

func (f *Follower) flush(each func(Line) error) error {
	var read [][]Line
	for _, name := range slices.Sorted(maps.Keys(f.tails)) {
		read = append(read, f.tails[name].flush())
	}
	return f.emit(read, each)
}

// emit merges the containers' lines by time. Each container's own order is
// kept even where the clock went backwards.
func (f *Follower) emit(read [][]Line, each func(Line) error) error {
	for {
		first := -1
		for i, lines := range read {
			if len(lines) > 0 && (first < 0 || lines[0].Time.Before(read[first][0].Time)) {
				first = i
			}
		}
		if first < 0 {
			return nil
		}
		l := read[first][0]
		read[first] = read[first][1:]
		if !l.Time.IsZero() && l.Time.Before(f.opts.Since) {
			continue
		}
		if err := each(l); err != nil {
			return err
		}
	}
}

// discover begins to follow the containers that are new.
func (f *Follower) discover() error {
	entries, err := readDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || f.tails[name] != nil || (f.opts.Wanted != nil && !f.opts.Wanted(name)) {
			continue
		}
		dir := filepath.Join(f.dir, name)
		if err := f.watcher.Add(dir); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return fmt.Errorf("following logs in %s: %w", dir, err)
		}
		f.tails[name] = newTail(dir)
	}
	return nil
}
