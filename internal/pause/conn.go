package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Conn is the node's connection to the pause process of a pod. It must be
// closed, even when pause has died.
type Conn struct {
	process *process
	version int
	limit   int // children pause can hold
	sock    *os.File
	raw     syscall.RawConn

	sending sync.Mutex // messages of one request stay together

	mu       sync.Mutex
	serial   uint32
	calls    map[uint32]*call
	spawning map[string]*spawning // children whose exit isn't for Exits yet
	queue    []Exit               // for Exits
	giving   bool                 // a goroutine is emptying the queue
	err      error                // why the connection ended
	exits    chan Exit

	closing chan struct{}  // closed by Close; no worker starts any more
	ended   chan struct{}  // closed when the connection has ended; err is set
	workers sync.WaitGroup // goroutines of this connection
}

// Exit tells how a child ended.
type Exit struct {
	ID     string
	Status unix.WaitStatus
	At     time.Time // when pause reaped it
}

// call is a request waiting for its answer.
type call struct {
	serial   uint32
	done     chan struct{} // closed when reply (or err) is there
	reply    *message
	files    []*os.File // that came with the reply
	children []Child    // answers to LIST
	err      error
}

// close closes what came with the answer.
func (call *call) close() {
	closeAll(call.files)
	for i := range call.children {
		ch := &call.children[i]
		if ch.Pidfd != nil {
			ch.Pidfd.Close()
		}
		closeAll(ch.Keep)
	}
}

// newConn takes over sock, a connection to p.
func newConn(sock int, p *process) (*Conn, error) {
	if err := unix.SetNonblock(sock, true); err != nil {
		unix.Close(sock)
		return nil, fmt.Errorf("connection to pause: %w", err)
	}
	f := os.NewFile(uintptr(sock), "connection to pause")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("connection to pause: %w", err)
	}
	c := &Conn{
		process: p, sock: f, raw: raw,
		calls: map[uint32]*call{}, spawning: map[string]*spawning{},
		exits: make(chan Exit), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	c.workers.Go(c.read)
	return c, nil
}

// Connect finds the pause process of a pod again, after the node was restarted.
// It replaces any other connection to it. errdefs.ErrNotFound means that there
// is no pause any more. Call Children for what it holds.
func Connect(ctx context.Context, dir string) (*Conn, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("connecting to pause in %s: %w", dir, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to pause: %w", err)
	}
	defer d.Close()
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connecting to pause: %w", err)
	}
	switch err := unix.Connect(sock, socketPath(d)); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		unix.Close(sock)
		return nil, fmt.Errorf("connecting to pause in %s: it is gone: %w", dir, errdefs.ErrNotFound)
	case errors.Is(err, unix.EAGAIN):
		unix.Close(sock)
		return nil, fmt.Errorf("connecting to pause in %s: it accepts no connection (is it frozen?): %w", dir, errdefs.ErrUnavailable)
	case err != nil:
		unix.Close(sock)
		return nil, fmt.Errorf("connecting to pause in %s: %w", dir, err)
	}
	p, err := peer(sock)
	if err != nil {
		unix.Close(sock)
		return nil, fmt.Errorf("connecting to pause in %s: %w", dir, err)
	}
	c, err := newConn(sock, p)
	if err != nil {
		p.forget()
		return nil, err
	}
	// The answer also proves that the PID still meant pause when we took hold
	// of it.
	if err := c.hello(ctx); err != nil {
		if errdefs.IsUnavailable(err) {
			select {
			case <-p.done:
				err = fmt.Errorf("it has just ended: %w", errdefs.ErrNotFound)
			case <-time.After(time.Second): // it serves another connection
			}
		}
		c.Close()
		return nil, fmt.Errorf("connecting to pause in %s: %w", dir, err)
	}
	return c, nil
}

// peer takes hold of the process that listens at the other end.
func peer(sock int) (*process, error) {
	cred, err := unix.GetsockoptUcred(sock, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("asking for the PID of pause: %w", err)
	}
	if cred.Pid <= 0 {
		return nil, fmt.Errorf("it lives in a PID namespace this node can't see: %w", errdefs.ErrFailedPrecondition)
	}
	pidfd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("it is gone: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of pause (%d): %w", cred.Pid, err)
	}
	return newProcess(int(cred.Pid), pidfd, false)
}

// PID returns the PID of pause in the node's PID namespace.
func (c *Conn) PID() int { return c.process.pid }

// Version returns the version of the protocol that pause speaks.
func (c *Conn) Version() int { return c.version }

// Done is closed when the pause process is gone, and with it, unless it had no
// PID namespace of its own, everything in the pod. After Close it may stay open.
func (c *Conn) Done() <-chan struct{} { return c.process.done }

// Exits delivers the end of every child that isn't released, again on each new
// connection. It is closed when the connection has ended. A slow reader holds
// up nothing.
func (c *Conn) Exits() <-chan Exit { return c.exits }

// Terminate kills pause, and so, by the kernel, every process of the pod's PID
// namespace. A pause without one (hostPID) leaves its children behind: kill
// their cgroup. Done tells when it has happened. Terminating a dead pause is no
// error.
func (c *Conn) Terminate() error {
	if err := c.process.kill(); err != nil {
		return fmt.Errorf("killing pause (%d): %w", c.process.pid, err)
	}
	return nil
}

// Close drops the connection and waits for its goroutines. The pod lives on.
func (c *Conn) Close() error {
	c.mu.Lock()
	first := !c.closed()
	if first {
		close(c.closing)
	}
	c.mu.Unlock()
	if first {
		c.sock.Close()
		c.process.forget()
	}
	c.workers.Wait()
	return nil
}

// closed says whether Close was called; c.mu is held.
func (c *Conn) closed() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}

// hello shakes hands and refuses a pause that doesn't speak our language.
func (c *Conn) hello(ctx context.Context) error {
	call, err := c.greet(ctx)
	if err != nil {
		return err
	}
	return c.greeted(ctx, call)
}

// greet sends our half of the handshake.
func (c *Conn) greet(ctx context.Context) (*call, error) {
	return c.send(ctx, request{Type: typeHello, Magic: protocolMagic, Version: protocolVersion}, nil)
}

// greeted waits for pause's half.
func (c *Conn) greeted(ctx context.Context, call *call) error {
	if err := c.answered(ctx, call); err != nil {
		return err
	}
	m := call.reply
	if m.Error != 0 || m.Magic != protocolMagic {
		return fmt.Errorf("the process at the socket is not pause: %w", errdefs.ErrFailedPrecondition)
	}
	if m.Version < oldestVersion || m.Oldest > protocolVersion {
		return fmt.Errorf("pause speaks protocol versions %d to %d, this node %d to %d: %w",
			m.Oldest, m.Version, oldestVersion, protocolVersion, errdefs.ErrFailedPrecondition)
	}
	c.version, c.limit = int(m.Version), int(m.Limit)
	return nil
}

// Release acknowledges an exit: pause forgets the child and closes what it kept
// for it. errdefs.ErrNotFound if pause doesn't know the ID,
// errdefs.ErrFailedPrecondition if the child still runs.
func (c *Conn) Release(ctx context.Context, id string) error {
	req := request{Type: typeRelease}
	if err := setID(&req, id); err != nil {
		return err
	}
	call, err := c.do(ctx, req, nil)
	if err != nil {
		return fmt.Errorf("releasing %s: %w", id, err)
	}
	switch errno := unix.Errno(call.reply.Error); errno {
	case 0:
		return nil
	case unix.ENOENT:
		return fmt.Errorf("releasing %s: pause doesn't know it: %w", id, errdefs.ErrNotFound)
	case unix.EBUSY:
		return fmt.Errorf("releasing %s: it still runs: %w", id, errdefs.ErrFailedPrecondition)
	default:
		return fmt.Errorf("releasing %s: %w", id, errno)
	}
}

// DropKept makes pause close the last descriptor it keeps for a child and
// forget it: with the write end of a pipe held twice, the reader would never
// see its end. errdefs.ErrNotFound if pause keeps nothing for the ID.
func (c *Conn) DropKept(ctx context.Context, id string) error {
	req := request{Type: typeDrop}
	if err := setID(&req, id); err != nil {
		return err
	}
	call, err := c.do(ctx, req, nil)
	if err != nil {
		return fmt.Errorf("closing what is kept for %s: %w", id, err)
	}
	switch errno := unix.Errno(call.reply.Error); errno {
	case 0:
		return nil
	case unix.ENOENT:
		return fmt.Errorf("closing what is kept for %s: pause keeps nothing: %w", id, errdefs.ErrNotFound)
	default:
		return fmt.Errorf("closing what is kept for %s: %w", id, errno)
	}
}

// Child is a process pause holds: running, or ended and not released.
type Child struct {
	ID                    string
	PID                   int        // in the node's PID namespace; 0 once exited
	Pidfd                 *os.File   // nil once exited
	Keep                  []*os.File // copies of the descriptors it was given to keep
	Exited                bool
	Status                unix.WaitStatus // once exited
	StartedAt, FinishedAt time.Time
}

// Children returns what pause holds. The files are the caller's to close.
func (c *Conn) Children(ctx context.Context) ([]Child, error) {
	call, err := c.do(ctx, request{Type: typeList}, nil)
	if err != nil {
		return nil, fmt.Errorf("listing the children of pause: %w", err)
	}
	for i := range call.children {
		ch := &call.children[i]
		if ch.Exited {
			continue
		}
		if ch.PID, err = fileNumber(ch.Pidfd, pidOf); err != nil {
			call.close()
			return nil, fmt.Errorf("process of %s: %w", ch.ID, err)
		}
	}
	return call.children, nil
}

func setID(r *request, id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("ID %q: 1 to %d bytes are allowed: %w", id, maxID, errdefs.ErrInvalidArgument)
	}
	for i := range len(id) {
		if id[i] == 0 {
			return fmt.Errorf("ID %q contains a zero byte: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	copy(r.ID[:], id)
	return nil
}

// fileNumber calls f with the number of an open file without changing its mode,
// as (*os.File).Fd may.
func fileNumber(file *os.File, f func(fd int) (int, error)) (n int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = f(int(fd)) }); cerr != nil {
		return 0, cerr
	}
	return n, err
}
