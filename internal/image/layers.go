package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// labelUpperdir is where the overlay snapshotter says a snapshot's files are.
const labelUpperdir = "containerd.io/snapshot/overlay.upperdir"

// Layers returns the directories of an image's layers, topmost first, as
// overlayfs wants its lower directories. They stay as they are until owner (a
// container's ID) lets go of them with ReleaseLayers, also across restarts of
// the process and when the image is removed. An owner may use several images.
//
// It writes one small file to Config.Run and nothing to the disk.
func (s *Store) Layers(ctx context.Context, imageID, owner string) ([]string, error) {
	if owner == "" || len(owner) > 200 || strings.ContainsAny(owner, "/\x00") || owner == "." || owner == ".." {
		return nil, fmt.Errorf("layers of image %s: owner %q is not a valid ID: %w", imageID, owner, errdefs.ErrInvalidArgument)
	}
	// While the lock is held the image cannot be removed: either Remove sees
	// the pin, or we see that the image is gone.
	s.mu.RLock()
	defer s.mu.RUnlock()
	chain, held := s.pins.chain(owner, imageID)
	if !held {
		id, _, err := s.index.find(imageID)
		if err != nil {
			return nil, err
		}
		imageID, chain = id.String(), s.index.records(id)[0].chain
		if err := s.pins.add(owner, imageID, chain); err != nil {
			return nil, fmt.Errorf("recording that %s uses image %s: %w", owner, imageID, err)
		}
	}
	dirs, err := s.lowers(ctx, chain)
	if err != nil {
		return nil, fmt.Errorf("layers of image %s: %w", imageID, err)
	}
	return dirs, nil
}

// lowers are the directories of a chain of layers, topmost first.
func (s *Store) lowers(ctx context.Context, chain string) ([]string, error) {
	if v, ok := s.lowerCache.Load(chain); ok {
		return slices.Clone(v.([]string)), nil
	}
	ctx = scope(ctx)
	var dirs []string
	for name := chain; name != ""; {
		info, err := s.snapshots.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		dir := info.Labels[labelUpperdir]
		if dir == "" {
			return nil, fmt.Errorf("snapshot %s has no directory: %w", name, errdefs.ErrInternal)
		}
		dirs = append(dirs, dir)
		name = info.Parent
	}
	s.lowerCache.Store(chain, dirs)
	return slices.Clone(dirs), nil
}

// ReleaseLayers says that owner uses no layers any more. Layers of an image
// that was removed meanwhile are deleted behind the reply. It is idempotent.
func (s *Store) ReleaseLayers(ctx context.Context, owner string) error {
	s.mu.RLock()
	ids, err := s.pins.remove(owner)
	s.mu.RUnlock()
	if err != nil {
		return fmt.Errorf("releasing the layers of %s: %w", owner, err)
	}
	ctx = scope(ctx)
	for _, id := range ids {
		if err := s.dropRetained(ctx, id); err != nil {
			return fmt.Errorf("releasing the layers of removed image %s: %w", id, err)
		}
	}
	return nil
}

// Owners lists who holds layers, for comparison with what lives.
func (s *Store) Owners() []string { return s.pins.owners() }

// retain keeps the layers of an image whose names are about to go.
func (s *Store) retain(ctx context.Context, id digest.Digest, chain string) error {
	l, err := s.leases.Create(ctx, leases.WithID(leaseRetain+id.Encoded()))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.leases.AddResource(ctx, l, leases.Resource{ID: chain, Type: "snapshots/" + snapshotter})
	if err != nil {
		return errors.Join(err, s.leases.Delete(ctx, l))
	}
	s.pins.setRetained(id.String(), true)
	return nil
}

// dropRetained gives the layers of a removed image up if nobody uses it now.
func (s *Store) dropRetained(ctx context.Context, id string) error {
	if !s.pins.takeRetained(id) {
		return nil
	}
	if err := s.owe(); err != nil {
		return err
	}
	l := leases.Lease{ID: leaseRetain + strings.TrimPrefix(id, "sha256:")}
	if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.payLater(ctx)
	return nil
}

// pins are the uses of images by containers, one file per owner.
type pins struct {
	mu       sync.Mutex
	dir      string
	byOwner  map[string]map[string]string // owner -> image ID -> chain
	users    map[string]int               // image ID -> number of owners
	retained map[string]bool              // removed images that are still used
}

func (p *pins) load(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p.dir = dir
	p.byOwner = make(map[string]map[string]string)
	p.users = make(map[string]int)
	p.retained = make(map[string]bool)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			// A file that was never renamed: its owner got no layers.
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		m := make(map[string]string)
		for line := range strings.Lines(string(b)) {
			id, chain, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			m[id] = chain
			p.users[id]++
		}
		p.byOwner[f.Name()] = m
	}
	return nil
}

func (p *pins) chain(owner, id string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.byOwner[owner][id]
	return c, ok
}

func (p *pins) used(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.users[id] > 0
}

func (p *pins) owners() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.byOwner))
	for n := range p.byOwner {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (p *pins) add(owner, id, chain string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.byOwner[owner][id]; ok {
		return nil
	}
	var b strings.Builder
	for i, c := range p.byOwner[owner] {
		fmt.Fprintf(&b, "%s %s\n", i, c)
	}
	fmt.Fprintf(&b, "%s %s\n", id, chain)
	// Renamed into place, so that a crash never leaves half a record. No sync:
	// a reboot ends containers and this directory alike.
	tmp := filepath.Join(p.dir, "."+owner)
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(p.dir, owner)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if p.byOwner[owner] == nil {
		p.byOwner[owner] = make(map[string]string)
	}
	p.byOwner[owner][id] = chain
	p.users[id]++
	return nil
}

// remove forgets an owner and returns the images it used.
func (p *pins) remove(owner string) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.byOwner[owner]
	if !ok {
		return nil, nil
	}
	if err := os.Remove(filepath.Join(p.dir, owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	delete(p.byOwner, owner)
	var ids []string
	for id := range m {
		ids = append(ids, id)
		if p.users[id]--; p.users[id] == 0 {
			delete(p.users, id)
		}
	}
	return ids, nil
}

func (p *pins) setRetained(id string, v bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retained[id] = v
}

// takeRetained reports, once, that a removed image has no users left.
func (p *pins) takeRetained(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.retained[id] || p.users[id] > 0 {
		return false
	}
	delete(p.retained, id)
	return true
}
