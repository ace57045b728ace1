package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// reservation is a socket bound to the host's end of a mapping. It keeps the
// host's processes from taking the port (and shows in ss -lp who has it), and
// it serves what the table can't redirect: connections to ::1, for IPv6 has
// no route_localnet. Those are forwarded to the pod by hand.
type reservation struct {
	dial func(network string, local netip.Addr) (net.Conn, error) // to the pod

	socket io.Closer
	cancel context.CancelFunc // ends dialling
	mu     sync.Mutex
	conns  map[net.Conn]struct{} // nil when closed
	work   sync.WaitGroup
}

// reserve binds a socket to each host port of a pod.
func (n *Network) reserve(r *record) (all []*reservation, err error) {
	if len(r.Ports) == 0 {
		return nil, nil
	}
	defer func() {
		if err != nil {
			closeAll(all)
			all = nil
		}
	}()
	var has4, has6 bool
	for _, ip := range r.Attachment.IPs {
		has4, has6 = has4 || ip.Addr().Is4(), has6 || ip.Addr().Is6()
	}
	err = inNetns(n.ns, func() error {
		for _, p := range r.Ports {
			fd, err := bindPort(p, has4 && p.serves(true), has6 && p.serves(false))
			if errors.Is(err, unix.EADDRINUSE) {
				return fmt.Errorf("host port %s is in use by another process of this host: %w", p, ErrPortInUse)
			}
			if err != nil {
				return fmt.Errorf("reserving host port %s: %w", p, err)
			}
			f := os.NewFile(uintptr(fd), "host port "+p.String())
			res, err := n.serveReserved(f, p, r.Attachment.IPs)
			if err != nil {
				f.Close()
				return fmt.Errorf("reserving host port %s: %w", p, err)
			}
			all = append(all, res)
		}
		return nil
	})
	return all, err
}

// serveReserved takes the bound socket over.
func (n *Network) serveReserved(f *os.File, p PortMapping, ips []netip.Prefix) (*reservation, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reservation{socket: f, cancel: cancel, conns: make(map[net.Conn]struct{})}
	r.dial = func(network string, local netip.Addr) (net.Conn, error) {
		to := ips[0].Addr()
		for _, ip := range ips {
			if ip.Addr().Is4() == local.Unmap().Is4() {
				to = ip.Addr()
			}
		}
		return n.dialPod(ctx, network, netip.AddrPortFrom(to, p.ContainerPort))
	}
	switch p.Protocol {
	case TCP:
		l, err := net.FileListener(f)
		if err != nil {
			cancel()
			return nil, err
		}
		f.Close() // the listener has its own
		r.socket = l
		r.work.Go(func() { r.accept(l) })
	case UDP:
		c, err := net.FilePacketConn(f)
		if err != nil {
			cancel()
			return nil, err
		}
		f.Close()
		r.socket = c
		r.work.Go(func() { r.receive(c.(*net.UDPConn)) })
	}
	return r, nil
}

// close frees the port and ends what is forwarded.
func (r *reservation) close() {
	r.socket.Close()
	r.cancel()
	r.mu.Lock()
	conns := r.conns
	r.conns = nil
	r.mu.Unlock()
	for c := range conns {
		c.Close()
	}
	r.work.Wait()
}

func closeAll(all []*reservation) {
	for _, r := range all {
		r.close()
	}
}

// keep makes close end the connection too; false means that it has been
// called already.
func (r *reservation) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *reservation) drop(c net.Conn) {
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// bindPort binds a socket of the calling thread's network namespace to the
// host's end of a mapping, for the families wanted.
func bindPort(p PortMapping, for4, for6 bool) (fd int, err error) {
	kind, number := unix.SOCK_STREAM|unix.SOCK_NONBLOCK, int(p.Protocol.number())
	if p.Protocol == UDP {
		kind = unix.SOCK_DGRAM | unix.SOCK_NONBLOCK
	}
	af := unix.AF_INET
	var where unix.Sockaddr = &unix.SockaddrInet4{Port: int(p.HostPort), Addr: as4(p.HostIP)}
	if for6 {
		af = unix.AF_INET6
		where = &unix.SockaddrInet6{Port: int(p.HostPort), Addr: as6(p.HostIP)}
	}
	fd, err = unix.Socket(af, kind|unix.SOCK_CLOEXEC, number)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return -1, fmt.Errorf("this kernel has no %s: %w", p.Protocol, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if for6 {
		only6 := 1
		if for4 {
			only6 = 0
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6); err != nil {
			return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
		// An address that the host has only at times (a failover's) may be
		// named while it is away.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt IP_FREEBIND", err)
		}
	}
	if p.Protocol == TCP {
		// Without it, connections that a former owner closed a moment ago
		// would keep the port taken; with it, only a listening socket does.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	if err := unix.Bind(fd, where); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	if p.Protocol == TCP {
		if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
			return -1, os.NewSyscallError("listen", err)
		}
	}
	return fd, nil
}

func as4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

func as6(a netip.Addr) [16]byte {
	if a.Is6() {
		return a.As16()
	}
	return [16]byte{}
}
