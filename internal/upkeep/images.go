package upkeep

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/upkeep/imagegc"
)

// collectImages collects images now and then until ctx ends.
func (k *Keeper) collectImages(ctx context.Context) {
	if k.cfg.Images.Off() {
		// Pressure of the disk may still ask for unused images: their ages count
		// from here.
		if err := k.observe(ctx); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("looking at the images", "err", err)
		}
		return
	}
	ticker := k.cfg.Clock.NewTicker(imagePeriod)
	defer ticker.Stop()
	for {
		err := k.CollectImages(ctx)
		if ctx.Err() != nil {
			return
		}
		k.report(err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// report tells of a failed collection; of the first in a row in the log only,
// as kubelet does.
func (k *Keeper) report(err error) {
	if err != nil {
		k.cfg.Log.Error("image garbage collection failed", "err", err)
		if k.failed && k.cfg.Record != nil {
			k.cfg.Record(v1.EventTypeWarning, "ImageGCFailed", err.Error())
		}
	}
	k.failed = err != nil
}

// CollectImages removes images that are too old, and others if their file
// system is too full.
func (k *Keeper) CollectImages(ctx context.Context) error {
	k.imagesMu.Lock()
	defer k.imagesMu.Unlock()
	if err := k.observeLocked(ctx); err != nil {
		return err
	}
	now := k.cfg.Clock.Now()
	if old := imagegc.Old(k.cfg.Images, k.images, now); len(old) > 0 {
		if _, err := k.remove(ctx, old, math.MaxInt64); err != nil {
			return fmt.Errorf("removing images unused for more than %v: %w", k.cfg.Images.MaxAge, err)
		}
		if err := k.observeLocked(ctx); err != nil {
			return err
		}
	}
	node := k.cfg.Stats.Node(ctx)
	if node.Runtime == nil || node.Runtime.ImageFs == nil || node.Runtime.ImageFs.CapacityBytes == nil || node.Runtime.ImageFs.AvailableBytes == nil {
		return errors.New("the size of the images' file system is not known")
	}
	capacity, available := int64(*node.Runtime.ImageFs.CapacityBytes), int64(*node.Runtime.ImageFs.AvailableBytes)
	if capacity == 0 {
		err := errors.New("invalid capacity 0 on image filesystem")
		k.record(v1.EventTypeWarning, "InvalidDiskCapacity", err.Error())
		return err
	}
	excess, percent := imagegc.Excess(k.cfg.Images, capacity, available)
	if excess == 0 {
		return nil
	}
	k.cfg.Log.Info("the images' file system is fuller than it may be: removing unused ones", "used", fmt.Sprintf("%d%%", percent), "bytes", excess)
	freed, err := k.remove(ctx, imagegc.Space(k.cfg.Images, k.images, now), excess)
	if err != nil {
		return fmt.Errorf("wanted to free %d bytes, but freed %d bytes space with errors in image deletion: %w", excess, freed, err)
	}
	if freed < excess {
		message := imagegc.Short(percent, capacity, freed)
		k.record(v1.EventTypeWarning, "FreeDiskSpaceFailed", message)
		return errors.New(message)
	}
	return nil
}

// dropUnusedImages removes every image that may go.
func (k *Keeper) dropUnusedImages(ctx context.Context) error {
	k.imagesMu.Lock()
	defer k.imagesMu.Unlock()
	if err := k.observeLocked(ctx); err != nil {
		return err
	}
	_, err := k.remove(ctx, imagegc.Space(k.cfg.Images, k.images, k.cfg.Clock.Now()), math.MaxInt64)
	return err
}

// remove removes images until enough bytes are free. One that can't be removed
// doesn't keep the others.
func (k *Keeper) remove(ctx context.Context, list []imagegc.Image, enough int64) (freed int64, err error) {
	var errs []error
	for _, img := range list {
		if freed >= enough || ctx.Err() != nil {
			break
		}
		if _, err := k.cfg.CRI.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: img.ID}}); err != nil {
			errs = append(errs, fmt.Errorf("image %s: %w", img.ID, err))
			continue
		}
		k.cfg.Log.Info("removed an unused image", "image", img.ID, "bytes", img.Size)
		freed += img.Size
	}
	return freed, errors.Join(errs...)
}

func (k *Keeper) observe(ctx context.Context) error {
	k.imagesMu.Lock()
	defer k.imagesMu.Unlock()
	return k.observeLocked(ctx)
}

// observeLocked brings the memory of images up to date. Containers are listed
// after the images: one made in between is seen.
func (k *Keeper) observeLocked(ctx context.Context) error {
	list, err := k.cfg.CRI.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	used, err := k.imagesInUse(ctx)
	if err != nil {
		return err
	}
	var images []imagegc.Image
	for _, img := range list.Images {
		inUse := slices.ContainsFunc(slices.Concat([]string{img.Id}, img.RepoTags, img.RepoDigests), func(name string) bool { return used[name] })
		images = append(images, imagegc.Image{ID: img.Id, Size: int64(min(img.Size, math.MaxInt64)), Pinned: img.Pinned, InUse: inUse})
	}
	k.images = imagegc.Observe(k.images, k.cfg.Clock.Now(), images)
	return nil
}

// imagesInUse are the images of containers, running or not, and of the volumes
// they mount, by every name the runtime gives them.
func (k *Keeper) imagesInUse(ctx context.Context) (map[string]bool, error) {
	list, err := k.cfg.CRI.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range list.Containers {
		for _, ref := range []string{c.ImageId, c.ImageRef, c.GetImage().GetImage()} {
			used[ref] = true
		}
		resp, err := k.cfg.CRI.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			if isNotFound(err) {
				continue
			}
			return nil, fmt.Errorf("status of container %s: %w", c.Id, err)
		}
		for _, m := range resp.GetStatus().GetMounts() {
			used[m.GetImage().GetImage()] = true
		}
	}
	delete(used, "")
	return used, nil
}
