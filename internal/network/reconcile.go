package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Reconcile makes the kernel and the records agree. See Plugin.
func (n *Network) Reconcile(ctx context.Context, live map[string]bool) error {
	n.mu.Lock()
	ids := make([]string, 0, len(n.pods))
	for id := range n.pods {
		ids = append(ids, id)
	}
	n.mu.Unlock()
	left := 0
	for _, id := range ids {
		kept, err := n.reconcilePod(ctx, id, live[id])
		if err != nil {
			return err
		}
		if kept {
			left++
		}
	}
	if err := n.deleteStrays(); err != nil {
		return err
	}
	n.infra.lost()
	if left == 0 {
		return n.forgetTable()
	}
	_, _, err := n.ensure(ctx)
	return err
}

// reconcilePod drops a pod's network unless it is whole and wanted.
func (n *Network) reconcilePod(ctx context.Context, id string, live bool) (kept bool, err error) {
	end, err := n.turns.take(ctx, id)
	if err != nil {
		return false, err
	}
	defer end()
	r := n.lookup(id)
	switch {
	case r == nil:
		return false, nil
	case live && r.Phase == ready:
		n.readopt(r)
		return true, nil
	}
	n.log.Info("disconnecting pod left over", "pod", id, "phase", r.Phase)
	return false, n.retire(ctx, r)
}

// readopt does for a living pod what ended with the former process.
func (n *Network) readopt(r *record) {
	if r.reserved == nil {
		reserved, err := n.reserve(r)
		if err != nil {
			n.log.Warn("a pod's host ports are served but not reserved", "pod", r.ID, "error", err)
		}
		r.reserved = reserved
	}
	index := 0
	if err := n.host.do(indexOf(r.Attachment.HostVeth, &index)); err != nil {
		n.log.Warn("a pod lost its link", "pod", r.ID, "error", err)
	}
}

// deleteStrays deletes links of ours that no record knows.
func (n *Network) deleteStrays() error {
	bridge, err := n.handle.LinkByName(n.cfg.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking up bridge %s: %w", n.cfg.Bridge, err)
	}
	links, err := n.handle.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	// The records are read after the links: a link being made meanwhile has
	// had its record before.
	n.mu.Lock()
	known := make(map[string]bool)
	for _, r := range n.pods {
		known[r.Attachment.HostVeth] = true
	}
	n.mu.Unlock()
	var strays []string
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex == bridge.Attrs().Index && isVethName(a.Name) && !known[a.Name] {
			strays = append(strays, a.Name)
		}
	}
	if len(strays) > 0 {
		n.log.Info("deleting links without a pod", "links", strays)
	}
	return deleteVeths(n.host, strays)
}

// forgetTable removes a former run's table when no pod needs it; the next
// Setup makes it anew.
func (n *Network) forgetTable() error {
	n.infra.mu.Lock()
	defer n.infra.mu.Unlock()
	if err := n.openTableLocked(); err != nil {
		return err
	}
	return n.infra.table.drop()
}

// Remove takes the bridge, the table and the files away. Host settings stay
// as they are. It fails while a pod is connected.
func (n *Network) Remove(ctx context.Context) error {
	if err := n.Wait(ctx); err != nil {
		return err
	}
	n.mu.Lock()
	left := len(n.pods)
	n.mu.Unlock()
	if left > 0 {
		return fmt.Errorf("removing the pod network: %d pods are connected: %w", left, errdefs.ErrFailedPrecondition)
	}
	n.infra.lost()
	if err := n.forgetTable(); err != nil {
		return err
	}
	bridge, err := n.handle.LinkByName(n.cfg.Bridge)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
	case err != nil:
		return fmt.Errorf("looking up bridge %s: %w", n.cfg.Bridge, err)
	case bridge.Type() == "bridge":
		if err := n.handle.LinkDel(bridge); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("deleting bridge %s: %w", n.cfg.Bridge, err)
		}
	}
	n.ipam.close()
	return errors.Join(
		os.RemoveAll(n.leases.dir),
		removeIfThere(filepath.Join(n.cfg.StateDir, cursorFile)),
		removeIfThere(filepath.Join(n.cfg.StateDir, cursorFile+newSuffix)),
		removeIfThere(n.lock.Name()),
	)
}

func removeIfThere(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
