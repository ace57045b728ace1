// Package linger closes TCP connections so that what was written last arrives.
//
// A server that closes a connection while the other side still sends, resets
// it: the kernel has nobody to give the data to. A proxy between the two
// (kubelet's, an API server's) takes the failed write for the end and drops
// what it hasn't passed on in the other direction, such as the exit code of an
// exec. A connection of this package sends its end when it is closed, and then
// takes and forgets what still comes, for [Patience] at most.
//
// A [Listener] owns the connections that linger; its Close ends them. Everything
// may be called concurrently.
//
// Floor: 0. It imports nothing of unipod.
package linger

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Patience is how long a closed connection waits for the other side to close.
const Patience = 5 * time.Second

// Listener gives out connections that linger.
type Listener struct {
	net.Listener

	mu      sync.Mutex
	closed  bool
	waiting map[*conn]struct{} // those that linger
	drains  sync.WaitGroup
}

// Listen wraps a listener. Connections that aren't TCP are left as they are.
func Listen(l net.Listener) *Listener {
	return &Listener{Listener: l, waiting: map[*conn]struct{}{}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &conn{TCPConn: tcp, l: l}, nil
	}
	return c, nil
}

// Close ends the listening and whatever lingers. Connections that are open
// aren't touched; those that are closed from now on don't linger.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.waiting {
		c.TCPConn.Close()
	}
	l.mu.Unlock()
	l.drains.Wait()
	return err
}

type conn struct {
	*net.TCPConn
	l       *Listener
	closing atomic.Bool
	reading sync.Mutex // held while something is read
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.TCPConn.Read(b)
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	return n, err
}

// WriteTo would read around Read.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	return c.TCPConn.Write(b)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	if c.closing.Load() {
		return net.ErrClosed
	}
	return c.TCPConn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.closing.Load() {
		return net.ErrClosed
	}
	return c.TCPConn.SetReadDeadline(t)
}

// Close sends the end of the connection and lets go of it. It doesn't wait for
// the other side; who reads or writes is told that it is closed.
func (c *conn) Close() error {
	if c.closing.Swap(true) {
		return net.ErrClosed
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.l.closed || c.TCPConn.CloseWrite() != nil {
		return c.TCPConn.Close()
	}
	c.l.waiting[c] = struct{}{}
	c.l.drains.Go(c.drain)
	return nil
}

func (c *conn) drain() {
	// A reader that waits is woken, and then takes no more.
	_ = c.TCPConn.SetDeadline(time.Unix(1, 0))
	c.reading.Lock()
	_ = c.TCPConn.SetDeadline(time.Now().Add(Patience))
	_, _ = io.Copy(io.Discard, c.TCPConn) // until the other side's end or the deadline
	c.reading.Unlock()
	c.TCPConn.Close()
	c.l.mu.Lock()
	delete(c.l.waiting, c)
	c.l.mu.Unlock()
}
