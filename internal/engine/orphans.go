package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/podspec"
)

// orphanGrace is what a container gets whose pod nobody knows any more, in
// seconds.
const orphanGrace = 2

// CleanOrphans ends every sandbox of the runtime that carries Kubernetes' pod
// labels but belongs to no applied pod and is not kept by keep (which may be
// nil), and removes the directories such pods left behind. It returns when
// they are gone; errors are joined.
func (e *Engine) CleanOrphans(ctx context.Context, keep func(PodUID) bool) error {
	resp, err := e.cfg.CRI.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("listing sandboxes: %w", err)
	}
	live := e.live()
	isLive := func(uid PodUID) bool { return live[uid] || keep != nil && keep(uid) }
	var group errgroup.Group
	group.SetLimit(8)
	var errs []error
	failed := make(chan error, len(resp.Items))
	for _, sb := range resp.Items {
		uid := PodUID(sb.Labels[podspec.LabelPodUID])
		if uid == "" || isLive(uid) {
			continue
		}
		e.log.Info("ending an orphan", "pod", sb.GetMetadata().GetNamespace()+"/"+sb.GetMetadata().GetName(), "uid", string(uid), "sandbox", sb.Id)
		group.Go(func() error {
			if err := e.endSandbox(ctx, sb.Id); err != nil {
				failed <- fmt.Errorf("ending orphaned sandbox %s of pod %s: %w", sb.Id, uid, err)
			}
			return nil
		})
	}
	_ = group.Wait() // its functions never fail
	close(failed)
	for err := range failed {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, e.cleanDirs(ctx, isLive))...)
}

func (e *Engine) live() map[PodUID]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	live := map[PodUID]bool{}
	for uid := range e.pods {
		live[uid] = true
	}
	return live
}

// endSandbox stops and removes a sandbox with its containers.
func (e *Engine) endSandbox(ctx context.Context, id string) error {
	rt := e.cfg.CRI
	list, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}})
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, c := range list.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		group.Go(func() error {
			_, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: orphanGrace})
			return ignoreGone(err)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if _, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); ignoreGone(err) != nil {
		return err
	}
	_, err = rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return ignoreGone(err)
}

func ignoreGone(err error) error {
	if isNotFound(err) {
		return nil
	}
	return err
}

// cleanDirs removes the directories and logs of pods that are not live.
func (e *Engine) cleanDirs(ctx context.Context, isLive func(PodUID) bool) error {
	entries, err := os.ReadDir(e.volumes.Dir)
	if err != nil {
		return err
	}
	live := map[types.UID]bool{}
	var errs []error
	for _, d := range entries {
		uid := PodUID(d.Name())
		if isLive(uid) {
			live[uid] = true
			continue
		}
		if d.IsDir() {
			errs = append(errs, e.users.release(uid))
		}
	}
	errs = append(errs, e.volumes.CleanOrphans(ctx, live))
	if e.cfg.KeepLogs {
		return errors.Join(errs...)
	}
	logs, err := os.ReadDir(e.cfg.LogDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, d := range logs {
		// <namespace>_<name>_<uid>; neither name holds an underscore.
		parts := strings.SplitN(d.Name(), "_", 3)
		if len(parts) == 3 && !isLive(PodUID(parts[2])) {
			errs = append(errs, os.RemoveAll(filepath.Join(e.cfg.LogDir, d.Name())))
		}
	}
	return errors.Join(errs...)
}
