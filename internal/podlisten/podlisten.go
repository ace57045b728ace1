// Package podlisten listens where pods and this machine reach a port, and
// nobody else does: on the machine's address of the link that pods are behind.
//
// An address alone keeps nobody out. The kernel takes a packet to any of its
// addresses from any link, and whoever shares a network with this machine may
// send one. So the socket has a filter in the kernel: what arrives neither by
// the pods' link nor from this machine itself is not there for it, whatever
// addresses it carries. (A socket bound to the link would keep this machine's
// own programs out, those of pods in its network among them: its answers leave
// by that link too.)
//
// The pods' link need not be there, nor the address: the filter lets the link
// in when it comes, and again when it was replaced.
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

// Listener listens for pods. Make one with [Listen].
type Listener struct {
	*net.TCPListener
	link string
	log  *slog.Logger

	stop context.CancelFunc
	work sync.WaitGroup
}

// Listen opens a port (0: any) of an address of this machine, for itself at
// once and for what comes by the link as soon as there is one of that name.
func Listen(link string, at netip.AddrPort, log *slog.Logger) (*Listener, error) {
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			if err = filter(fd, noLink); err == nil {
				// The address comes with the link.
				err = wrap(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1), "IP_FREEBIND")
			}
		})
		return errors.Join(err, cerr)
	}}
	network := "tcp6"
	if at.Addr().Is4() {
		network = "tcp4"
	}
	opened, err := cfg.Listen(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &Listener{TCPListener: opened.(*net.TCPListener), link: link, log: log, stop: stop}
	l.work.Go(func() { l.follow(ctx) })
	return l, nil
}

func wrap(err error, option string) error {
	if err != nil {
		return fmt.Errorf("setsockopt %s: %w", option, err)
	}
	return nil
}

const (
	loopback = 1 // the index of lo, in every network namespace
	noLink   = loopback
)

// filter makes a socket deaf to all but the loopback and one other link.
func filter(fd uintptr, index int) error {
	const (
		nothing, everything = 0, 0xffffffff
		byLink              = 0xfffff000 + 8 // SKF_AD_OFF + SKF_AD_IFINDEX
	)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: byLink},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 2, K: loopback},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: uint32(index)},
		{Code: unix.BPF_RET | unix.BPF_K, K: nothing},
		{Code: unix.BPF_RET | unix.BPF_K, K: everything},
	}
	return wrap(unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}), "SO_ATTACH_FILTER")
}

// watchAgain is how long a failed watch of links waits. The kernel ends one
// that it has told too much at once.
const watchAgain = time.Second

// follow keeps the filter in step with the link until Close.
func (l *Listener) follow(ctx context.Context) {
	for {
		if err := l.watch(ctx); err != nil {
			l.log.Warn("pods may not reach this port", "address", l.Addr(), "link", l.link, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchAgain):
		}
	}
}

// watch does what links tell until Close, or until the kernel tells no more.
func (l *Listener) watch(ctx context.Context) error {
	updates, stop := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(updates, stop, netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		close(stop)
		return fmt.Errorf("watching links: %w", err)
	}
	defer func() {
		close(stop)
		for range updates { // until the subscription has ended
		}
	}()
	for now := noLink; ; {
		next := now
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-updates:
			if !ok {
				return errors.New("watching links: the kernel tells no more")
			}
			switch a := u.Link.Attrs(); {
			case u.Header.Type == unix.RTM_NEWLINK && a.Name == l.link:
				next = a.Index
			case a.Index == now: // it went, or has another name
				next = noLink
			}
		}
		if next == now {
			continue
		}
		if err := l.let(next); err != nil {
			return err
		}
		now = next
	}
}

// let makes the link of that index the one that pods are behind.
func (l *Listener) let(index int) (err error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = filter(fd, index) })
	return errors.Join(err, cerr)
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.stop()
	err := l.TCPListener.Close()
	l.work.Wait()
	return err
}
