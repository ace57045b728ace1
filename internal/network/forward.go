package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialTimeout bounds the wait for a pod that does not answer at all.
	dialTimeout = 10 * time.Second
	// quietFlow ends a UDP flow, as long as the kernel's tracking gives one.
	quietFlow = 2 * time.Minute
	// maxFlows bounds the UDP flows of one port.
	maxFlows = 1024
)

// dialPod connects to a pod from the host's namespace.
func (n *Network) dialPod(ctx context.Context, network string, to netip.AddrPort) (c net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dial := func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, to.String())
		return err
	}
	if n.ownsNS {
		return c, dial()
	}
	return c, inNetns(n.ns, dial)
}

// accept forwards connections until the listener is closed.
func (r *reservation) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Too many open files, say: somebody may close some.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		r.work.Go(func() { r.forward(c.(*net.TCPConn)) })
	}
}

// forward copies both ways until both are done.
func (r *reservation) forward(c *net.TCPConn) {
	if !r.keep(c) {
		c.Close()
		return
	}
	defer r.drop(c)
	local, _ := netip.ParseAddrPort(c.LocalAddr().String())
	d, err := r.dial("tcp", local.Addr())
	if err != nil {
		// As if there were nobody, which is so.
		c.SetLinger(0)
		return
	}
	pod := d.(*net.TCPConn)
	if !r.keep(pod) {
		pod.Close()
		return
	}
	defer r.drop(pod)
	var back sync.WaitGroup
	back.Go(func() { copyHalf(c, pod) })
	copyHalf(pod, c)
	back.Wait()
}

// copyHalf copies one direction and passes its end on.
func copyHalf(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return
	}
	to.CloseWrite()
}

var datagrams = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// receive forwards datagrams, a connected socket for each sender, until the
// socket is closed.
func (r *reservation) receive(c *net.UDPConn) {
	var mu sync.Mutex
	flows := make(map[netip.AddrPort]net.Conn)
	for {
		// A port that nobody uses this way has no buffer.
		if !readable(c) {
			return
		}
		buf := datagrams.Get().(*[1 << 16]byte)
		size, from, err := c.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			datagrams.Put(buf)
			return
		}
		mu.Lock()
		flow, known := flows[from]
		full := len(flows) >= maxFlows
		mu.Unlock()
		if !known && !full {
			if flow, err = r.dial("udp", from.Addr()); err == nil && !r.keep(flow) {
				flow.Close()
				err = net.ErrClosed
			}
			if err == nil {
				mu.Lock()
				flows[from] = flow
				mu.Unlock()
				r.work.Go(func() {
					answer(c, flow, from)
					mu.Lock()
					delete(flows, from)
					mu.Unlock()
					r.drop(flow)
				})
			} else {
				flow = nil
			}
		}
		if flow != nil {
			flow.SetReadDeadline(time.Now().Add(quietFlow))
			flow.Write(buf[:size]) // may be lost, as datagrams may
		}
		datagrams.Put(buf)
	}
}

// answer sends what the pod answers back, until the flow is quiet or closed.
func answer(c *net.UDPConn, flow net.Conn, to netip.AddrPort) {
	raw := flow.(*net.UDPConn)
	for readable(raw) {
		buf := datagrams.Get().(*[1 << 16]byte)
		size, err := raw.Read(buf[:])
		if err == nil {
			raw.SetReadDeadline(time.Now().Add(quietFlow))
			_, err = c.WriteToUDPAddrPort(buf[:size], to)
		}
		datagrams.Put(buf)
		if err != nil {
			return
		}
	}
}

// readable waits for a datagram (or an error to be read) and leaves it there;
// false means that the socket is closed or its deadline has passed.
func readable(c *net.UDPConn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	return rc.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	}) == nil
}
