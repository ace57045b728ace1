package image

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// FsInfo is what images take of the file system they are on.
type FsInfo struct {
	At   time.Time
	Path string // the store's directory
	// Used by blobs and unpacked layers.
	UsedBytes, UsedInodes uint64
	// The whole file system.
	CapacityBytes, AvailableBytes   uint64
	CapacityInodes, AvailableInodes uint64
}

// FsInfo adds up what was recorded when blobs and layers were stored; it reads
// no directories.
func (s *Store) FsInfo(ctx context.Context) (*FsInfo, error) {
	ctx = scope(ctx)
	info := &FsInfo{At: s.cfg.Clock.Now(), Path: s.cfg.Root}
	err := s.snapshots.Walk(ctx, func(ctx context.Context, si snapshots.Info) error {
		if si.Kind != snapshots.KindCommitted {
			return nil // it is being written, its size would have to be counted
		}
		u, err := s.snapshots.Usage(ctx, si.Name)
		if err != nil {
			return err
		}
		info.UsedBytes += uint64(u.Size)
		info.UsedInodes += uint64(u.Inodes)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("adding up layers: %w", err)
	}
	err = s.content.Walk(ctx, func(i content.Info) error {
		info.UsedBytes += uint64(i.Size)
		info.UsedInodes++
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("adding up blobs: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", s.cfg.Root, err)
	}
	block := uint64(st.Frsize)
	info.CapacityBytes, info.AvailableBytes = st.Blocks*block, st.Bavail*block
	info.CapacityInodes, info.AvailableInodes = st.Files, st.Ffree
	return info, nil
}
