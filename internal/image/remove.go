package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Removed is what Remove and Prune took away.
type Removed struct {
	// Untagged are the names that are gone.
	Untagged []string
	// Deleted are the IDs of images that have no name left. Layers that
	// containers use go when the last of them does.
	Deleted []string
}

// Remove takes a name away from an image, or all names when refOrID is an ID.
// An image without names is deleted. errdefs.ErrNotFound if there is none.
func (s *Store) Remove(ctx context.Context, refOrID string) (*Removed, error) {
	r, err := s.remove(scope(ctx), func(x *index) ([]string, error) {
		id, rec, err := x.find(refOrID)
		if err != nil {
			return nil, err
		}
		if rec == nil {
			return x.allNames(id), nil
		}
		names := []string{rec.name}
		// The digest names that came with tags go with the last tag.
		var company []string
		for _, r := range x.records(id) {
			switch {
			case r.name == rec.name:
			case r.asked:
				return names, nil
			default:
				company = append(company, r.name)
			}
		}
		return append(names, company...), nil
	})
	if err != nil {
		return nil, fmt.Errorf("removing image %q: %w", refOrID, err)
	}
	return r, nil
}

// Prune removes the images nobody asked for any more (their tag has moved on),
// or with all every image that no container uses. Pinned images stay.
func (s *Store) Prune(ctx context.Context, all bool) (*Removed, error) {
	r, err := s.remove(scope(ctx), func(x *index) ([]string, error) {
		var names []string
		for id := range x.ids {
			if s.prunable(x, id, all) {
				names = append(names, x.allNames(id)...)
			}
		}
		return names, nil
	})
	if err != nil {
		return nil, fmt.Errorf("pruning images: %w", err)
	}
	return r, nil
}

func (s *Store) prunable(x *index, id digest.Digest, all bool) bool {
	if s.pins.used(id.String()) {
		return false
	}
	for _, r := range x.records(id) {
		if s.pinned[r.name] || r.asked && !all {
			return false
		}
	}
	return true
}

func (x *index) allNames(id digest.Digest) []string {
	var names []string
	for _, r := range x.records(id) {
		names = append(names, r.name)
	}
	return names
}

// remove takes the names that pick chooses away and collects what then is
// garbage. Nothing changes between the choice and its execution.
func (s *Store) remove(ctx context.Context, pick func(*index) ([]string, error)) (*Removed, error) {
	names, r, err := s.forget(ctx, pick)
	if err != nil || len(names) == 0 {
		return r, err
	}
	if err := s.pay(ctx); err != nil {
		return r, err
	}
	s.log.Info("removed images", "names", r.Untagged, "deleted", r.Deleted)
	return r, nil
}

func (s *Store) forget(ctx context.Context, pick func(*index) ([]string, error)) ([]string, *Removed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := pick(&s.index)
	r := &Removed{}
	if err != nil || len(names) == 0 {
		return nil, r, err
	}
	left := make(map[digest.Digest]int)
	for _, n := range names {
		id := s.index.names[n].config
		if _, ok := left[id]; !ok {
			left[id] = len(s.index.ids[id])
		}
		left[id]--
	}
	for id, n := range left {
		if n > 0 {
			continue
		}
		if chain := s.index.records(id)[0].chain; chain != "" && s.pins.used(id.String()) {
			if err := s.retain(ctx, id, chain); err != nil {
				return nil, nil, fmt.Errorf("keeping the layers that containers use: %w", err)
			}
		}
		r.Deleted = append(r.Deleted, id.String())
	}
	if err := s.owe(); err != nil {
		return nil, nil, err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, n := range names {
			if err := s.images.Delete(ctx, n); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, errors.Join(err, s.pay(ctx))
	}
	for _, n := range names {
		if n != s.index.names[n].config.String() {
			r.Untagged = append(r.Untagged, n)
		}
		s.index.drop(n)
	}
	return names, r, nil
}
