// Package podlisten listens where pods and this machine reach a port, and
// nobody else does: on the machine's address of the link that pods are behind.
//
// An address alone keeps nobody out. The kernel takes a packet to any of its
// addresses from any link, and whoever shares a network with this machine may
// send one. So there are two sockets for the address, one bound to the pods'
// link and one to the loopback: what arrives by another link finds none of
// them, whatever addresses it carries.
//
// The pods' link need not be there: its socket is opened when the link comes,
// again when the link was replaced, and closed when it goes. The machine's
// side is there from the beginning, so the port is known.
//
// A Listener is like any other: safe for concurrent use, Close waits for what
// it started, and connections it handed out are their owners'.
//
// Floor: 0. It imports nothing of unipod.
package podlisten

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Listener listens on both sides. Make one with [Listen].
type Listener struct {
	link string
	at   netip.AddrPort
	log  *slog.Logger

	accepted chan net.Conn
	done     chan struct{} // closed by Close
	work     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	host   net.Listener
	pods   net.Listener // nil while the link isn't there
	index  int          // of the link that pods is bound to
}

// Listen opens the machine's side of a port (0: any) of an address that need
// not be there yet, and the pods' as soon as their link is.
func Listen(link string, at netip.AddrPort, log *slog.Logger) (*Listener, error) {
	l := &Listener{link: link, log: log, accepted: make(chan net.Conn), done: make(chan struct{})}
	host, err := open("lo", at)
	if err != nil {
		return nil, err
	}
	l.at = netip.AddrPortFrom(at.Addr(), uint16(host.Addr().(*net.TCPAddr).Port))
	l.host = host
	l.work.Go(func() { l.accept(host) })
	l.work.Go(l.follow)
	return l, nil
}

// open listens on an address for what comes by one link.
func open(link string, at netip.AddrPort) (net.Listener, error) {
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, link); err == nil {
				// The address comes with the link, perhaps a moment later.
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			}
		})
		return errors.Join(err, cerr)
	}}
	network := "tcp6"
	if at.Addr().Is4() {
		network = "tcp4"
	}
	l, err := cfg.Listen(context.Background(), network, at.String())
	if err != nil {
		return nil, fmt.Errorf("listening by link %s: %w", link, err)
	}
	return l, nil
}

// watchAgain is how long a failed watch of links waits. The kernel ends one
// that it has told too much at once.
const watchAgain = time.Second

// follow opens and closes the pods' side until Close.
func (l *Listener) follow() {
	for {
		if err := l.watch(); err != nil {
			l.log.Warn("watching links", "link", l.link, "err", err)
		}
		select {
		case <-l.done:
			return
		case <-time.After(watchAgain):
		}
	}
}

// watch does what links tell until Close, or until the kernel tells no more.
func (l *Listener) watch() error {
	updates, stop := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(updates, stop, netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		close(stop)
		return err
	}
	defer func() {
		close(stop)
		for range updates { // until the subscription has ended
		}
	}()
	for {
		select {
		case <-l.done:
			return nil
		case u, ok := <-updates:
			if !ok {
				return errors.New("the kernel tells no more")
			}
			a := u.Link.Attrs()
			switch {
			case u.Header.Type == unix.RTM_DELLINK:
				l.gone(a.Index)
			case a.Name == l.link:
				l.open(a.Index)
			}
		}
	}
}

func (l *Listener) open(index int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.pods != nil && l.index == index {
		return
	}
	if l.pods != nil {
		l.pods.Close()
		l.pods = nil
	}
	pods, err := open(l.link, l.at)
	if err != nil {
		l.log.Error("pods can't reach this port", "address", l.at, "link", l.link, "err", err)
		return
	}
	l.pods, l.index = pods, index
	l.work.Go(func() { l.accept(pods) })
	l.log.Debug("listening for pods", "address", l.at, "link", l.link)
}

func (l *Listener) gone(index int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods != nil && l.index == index {
		l.pods.Close()
		l.pods = nil
	}
}

// accept hands on what one side accepts, until it is closed.
func (l *Listener) accept(side net.Listener) {
	for {
		c, err := side.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Too many open files, say: somebody may close some.
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-l.done:
				return
			}
		}
		select {
		case l.accepted <- c:
		case <-l.done:
			c.Close()
		}
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	default:
	}
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.done)
	err := l.host.Close()
	if l.pods != nil {
		err = errors.Join(err, l.pods.Close())
	}
	l.mu.Unlock()
	l.work.Wait()
	return err
}

// Addr implements net.Listener: an address and a known port.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }
