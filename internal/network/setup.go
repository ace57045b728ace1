package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Setup connects a pod to the bridge. See Plugin.
func (n *Network) Setup(ctx context.Context, req Request) (*Attachment, error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	inode, err := inodeOf(req.Netns)
	if err != nil {
		return nil, err
	}
	end, err := n.turns.take(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	defer end()

	n.reaper.working(n.cfg.Clock.Now())
	r, err := n.setup(ctx, req, inode)
	switch {
	case errors.Is(err, errNoBridge):
		// Somebody took the bridge away; make it again, once.
		n.infra.lost()
		r, err = n.setup(ctx, req, inode)
	case errors.Is(err, errBridgeFull), errors.Is(err, ErrNoFreeIP):
		// Pods that have ended may still have a port and addresses.
		if err = n.reaper.gone(ctx, ""); err == nil {
			r, err = n.setup(ctx, req, inode)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("network of pod %s: %w", req.ID, err)
	}
	n.log.Debug("pod connected", "pod", req.ID, "ips", r.Attachment.IPs, "veth", r.Attachment.HostVeth)
	return new(r.Attachment), nil
}

// setup finds what the pod has or attaches it anew. The caller has the pod's
// turn.
func (n *Network) setup(ctx context.Context, req Request, inode uint64) (*record, error) {
	r := n.lookup(req.ID)
	if r == nil {
		return n.attach(ctx, req, inode)
	}
	if r.Phase == ready && r.Netns == inode && slices.Equal(r.Ports, req.Ports) {
		index := 0
		err := n.host.do(indexOf(r.Attachment.HostVeth, &index))
		if err == nil && index == r.Attachment.HostVethIndex {
			return r, nil
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
	}
	// A former life of this pod, or one that was cut short.
	if err := n.retire(ctx, r); err != nil {
		return nil, err
	}
	if err := n.reaper.gone(ctx, req.ID); err != nil {
		return nil, err
	}
	return n.attach(ctx, req, inode)
}

// attach does Setup's work for a pod that has nothing yet.
func (n *Network) attach(ctx context.Context, req Request, inode uint64) (_ *record, err error) {
	if err := checkPorts(req.Ports, n.ipam.networks()); err != nil {
		return nil, err
	}
	bridge, mtu, err := n.ensure(ctx)
	if err != nil {
		return nil, err
	}
	ips, err := n.ipam.lease()
	if err != nil {
		return nil, err
	}
	r := &record{
		Version: recordVersion, ID: req.ID, Netns: inode, Phase: making, Ports: req.Ports,
		Attachment: Attachment{
			IPs: ips, Gateways: n.gatewaysOf(ips),
			MAC: macOf(ips[0].Addr()).String(), HostVeth: vethName(req.ID), MTU: mtu,
		},
	}
	if err := n.enter(r); err != nil {
		n.ipam.free(ips)
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.retire(context.WithoutCancel(ctx), r))
		}
	}()

	if err := r.hold(req.Netns); err != nil {
		return nil, err
	}
	if r.reserved, err = n.reserve(r); err != nil {
		return nil, err
	}
	if err := n.leases.put(r.ID, r); err != nil {
		return nil, err
	}
	n.at("recorded")
	if err := n.connect(ctx, bridge, req.Netns, r); err != nil {
		return nil, err
	}
	n.at("connected")
	if err := n.mapPorts(ctx, r); err != nil {
		return nil, err
	}
	n.at("mapped")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.Phase = ready
	if err := n.leases.put(r.ID, r); err != nil {
		return nil, err
	}
	n.at("ready")
	return r, nil
}

// connect makes the link and configures its inner end.
func (n *Network) connect(ctx context.Context, bridge int, ns *os.File, r *record) error {
	inside, err := openPodNS(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	if r.Attachment.HostVethIndex, err = makeVeth(n.host, bridge, ns, r.ID, &r.Attachment); err != nil {
		return err
	}
	n.at("linked")
	index, err := configurePod(inside, &r.Attachment)
	if err != nil {
		return err
	}
	a := &r.Attachment
	if err := await(ctx, n.host, linkWorks(a.HostVeth, a.HostVethIndex), linkWorks(n.cfg.Bridge, bridge)); err != nil {
		return err
	}
	return await(ctx, inside, append(addressesWork(a.IPs), linkWorks(podLink, index))...)
}

// mapPorts makes the table send a pod's host ports to it.
func (n *Network) mapPorts(ctx context.Context, r *record) error {
	all := elements(r.ID, r.Attachment.IPs, r.Ports)
	if len(all) == 0 {
		return nil
	}
	n.setMapped(r, true)
	err := n.infra.table.add(all)
	if errors.Is(err, unix.ENOENT) {
		// Somebody flushed the ruleset. Making it anew maps this pod too.
		n.infra.lost()
		_, _, err = n.ensure(ctx)
	}
	if err != nil {
		return err
	}
	n.forgetStaleFlows(r)
	return nil
}

// unmapPorts undoes mapPorts.
func (n *Network) unmapPorts(ctx context.Context, r *record) error {
	if !n.setMapped(r, false) {
		return nil
	}
	if table := n.infra.madeTable(); table != nil {
		err := table.remove(elements(r.ID, r.Attachment.IPs, r.Ports))
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		// Not all of them are there, and so the transaction did nothing:
		// somebody flushed the ruleset.
		n.infra.lost()
	}
	_, _, err := n.ensure(ctx)
	return err
}

// setMapped says whether the table is to have a pod's ports, and returns
// whether it was.
func (n *Network) setMapped(r *record, mapped bool) (was bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was, r.mapped = r.mapped, mapped
	return was
}

// Teardown disconnects a pod. When it returns, the pod's host ports are free;
// its link and addresses go soon after, see Wait. An unknown pod is no error.
func (n *Network) Teardown(ctx context.Context, id string) error {
	end, err := n.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	r := n.lookup(id)
	if r == nil {
		return nil
	}
	return n.retire(ctx, r)
}

// retire frees a pod's host ports and leaves the rest to the reaper. The
// caller has the pod's turn.
func (n *Network) retire(ctx context.Context, r *record) error {
	if r.Phase == ending {
		return nil
	}
	before := r.Phase
	r.Phase = ending
	if err := n.leases.put(r.ID, r); err != nil {
		// A full disk must not keep a pod from ending. After a crash its
		// link is one without a record, which Reconcile deletes as well.
		if err := n.leases.remove(r.ID); err != nil {
			r.Phase = before
			return err
		}
	}
	n.at("retired")
	if err := n.unmapPorts(ctx, r); err != nil {
		r.Phase = before
		n.setMapped(r, true)
		return err
	}
	closeAll(r.reserved)
	r.reserved = nil
	n.mu.Lock()
	r.portsFree = true
	n.mu.Unlock()
	n.at("unmapped")
	n.reaper.add(r, n.cfg.Clock.Now())
	return nil
}

// Wait returns when everything that Teardown left to be done is done.
func (n *Network) Wait(ctx context.Context) error {
	return n.reaper.gone(ctx, "")
}

func (n *Network) lookup(id string) *record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods[id]
}

func (n *Network) at(point string) {
	if n.fault != nil {
		n.fault(point)
	}
}

func (n *Network) gatewaysOf(ips []netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, gw := range n.ipam.gateways() {
		for _, ip := range ips {
			if ip.Masked() == gw.Masked() {
				all = append(all, gw.Addr())
			}
		}
	}
	return all
}

// elements returns all the entries the table is to have.
func (n *Network) elements() []element {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []element
	for _, r := range n.pods {
		if r.mapped {
			all = append(all, elements(r.ID, r.Attachment.IPs, r.Ports)...)
		}
	}
	return all
}

// inodeOf identifies a network namespace for as long as it lives.
func inodeOf(ns *os.File) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(ns.Fd()), &st); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", ns.Name(), err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return 0, fmt.Errorf("%s is not a network namespace: %w", ns.Name(), errdefs.ErrInvalidArgument)
	}
	var fi unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &fi); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", ns.Name(), err)
	}
	return fi.Ino, nil
}
