package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var errClosed = fmt.Errorf("connection to pause: %w", os.ErrClosed)

// do sends a request and waits for its answer.
func (c *Conn) do(ctx context.Context, req request, files []*os.File) (*call, error) {
	call, err := c.send(ctx, req, files)
	if err != nil {
		return nil, err
	}
	if err := c.answered(ctx, call); err != nil {
		return nil, err
	}
	return call, nil
}

// answered waits for the answer to a call and, if it fails, forgets the call.
func (c *Conn) answered(ctx context.Context, call *call) error {
	err := c.wait(ctx, call)
	if err != nil {
		c.mu.Lock()
		delete(c.calls, call.serial)
		c.mu.Unlock()
		call.close()
	}
	return err
}

// wait waits for the answer to a call. If it fails because ctx has ended, the
// answer may still come.
func (c *Conn) wait(ctx context.Context, call *call) error {
	select {
	case <-call.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return call.err
}

// send registers a call and sends its request, with descriptors that don't fit
// ahead of it in messages of their own.
func (c *Conn) send(ctx context.Context, req request, files []*os.File) (*call, error) {
	if len(files) > maxStash {
		return nil, fmt.Errorf("%d descriptors, pause takes at most %d with one request: %w", len(files), maxStash, errdefs.ErrInvalidArgument)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		var err error
		if fds[i], err = fileNumber(f, func(fd int) (int, error) { return fd, nil }); err != nil {
			return nil, fmt.Errorf("descriptor %d (%s): %w", i, f.Name(), os.ErrClosed)
		}
	}
	defer runtime.KeepAlive(files)

	call := &call{done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.serial++
	call.serial, req.Serial = c.serial, c.serial
	c.calls[call.serial] = call
	c.mu.Unlock()

	if err := c.write(ctx, req, fds); err != nil {
		c.mu.Lock()
		delete(c.calls, call.serial)
		c.mu.Unlock()
		return nil, err
	}
	return call, nil
}

// write sends the messages of one request. If ctx ends half-way, pause drops
// what it has got when the next request comes.
func (c *Conn) write(ctx context.Context, req request, fds []int) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.sock.SetWriteDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			c.sock.SetWriteDeadline(time.Time{})
		}
	}()
	for len(fds) > maxSCM {
		ahead := request{Type: typeFiles, Serial: req.Serial}
		if err := c.writeOne(ctx, ahead, fds[:maxSCM]); err != nil {
			return err
		}
		fds = fds[maxSCM:]
	}
	return c.writeOne(ctx, req, fds)
}

func (c *Conn) writeOne(ctx context.Context, req request, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	b := req.encode()
	var err error
	werr := c.raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case errors.Is(werr, os.ErrDeadlineExceeded):
		return ctx.Err()
	case werr != nil:
		err = werr
	}
	if err != nil {
		return fmt.Errorf("connection to pause: %w", err)
	}
	return nil
}

// read receives until the connection ends.
func (c *Conn) read() {
	b := make([]byte, 2*messageSize)
	oob := make([]byte, unix.CmsgSpace(4*(1+maxKeep)))
	for {
		var n, oobn int
		var err error
		rerr := c.raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
			return err != unix.EAGAIN && err != unix.EINTR
		})
		if rerr != nil {
			c.fail(errClosed)
			return
		}
		if err == nil && n == 0 {
			err = errors.New("pause has ended, or serves another connection")
		}
		if err != nil {
			c.fail(fmt.Errorf("connection to pause (%d): %w: %w", c.process.pid, err, errdefs.ErrUnavailable))
			return
		}
		files, err := rights(oob[:oobn])
		if err == nil {
			err = c.receive(b[:n], files)
		}
		if err != nil {
			closeAll(files)
			c.fail(fmt.Errorf("connection to pause (%d): %w", c.process.pid, err))
			return
		}
	}
}

// rights takes the descriptors out of a control message.
func rights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	scms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range scms {
		fds, err := unix.ParseUnixRights(&scms[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from pause"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// receive handles one message from pause.
func (c *Conn) receive(b []byte, files []*os.File) error {
	m, err := decodeMessage(b)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Type == typeExit {
		closeAll(files)
		s := c.spawning[m.id()]
		if s == nil || s.exit.ID != "" {
			c.give(m.exit())
			return nil
		}
		s.exit = m.exit()
		close(s.exited)
		return nil
	}
	call := c.calls[m.Serial]
	switch {
	case call == nil: // given up
		closeAll(files)
	case m.Type == typeChild:
		if m.Error != 0 {
			call.err = errors.Join(call.err, fmt.Errorf("pidfd of %s: %w", m.id(), unix.Errno(m.Error)))
			break
		}
		child, err := m.child(files)
		if err != nil {
			return err
		}
		call.children = append(call.children, child)
	case m.Type == typeResult:
		delete(c.calls, m.Serial)
		call.reply, call.files = m, files
		close(call.done)
	default:
		return fmt.Errorf("message of unknown type %d from pause", m.Type)
	}
	return nil
}

func (m *message) child(files []*os.File) (Child, error) {
	ch := Child{ID: m.id(), Exited: m.Exited != 0, StartedAt: time.Unix(0, m.Started)}
	if ch.Exited {
		ch.Status, ch.FinishedAt = unix.WaitStatus(m.Status), time.Unix(0, m.Finished)
	} else {
		if len(files) == 0 {
			return Child{}, fmt.Errorf("%s came from pause without its pidfd", ch.ID)
		}
		ch.Pidfd, files = files[0], files[1:]
	}
	ch.Keep = files
	return ch, nil
}

// give queues an exit for Exits; c.mu is held. A goroutine lives only while
// there is something in the queue.
func (c *Conn) give(e Exit) {
	if c.closed() {
		return
	}
	c.queue = append(c.queue, e)
	if !c.giving {
		c.giving = true
		c.workers.Go(c.deliver)
	}
}

func (c *Conn) deliver() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.queue, c.giving = nil, false
			if c.err != nil {
				close(c.exits)
			}
			c.mu.Unlock()
			return
		}
		e := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		select {
		case c.exits <- e:
		case <-c.closing:
			c.mu.Lock()
			c.queue = nil
			c.mu.Unlock()
		}
	}
}

// fail ends the connection: everything that waits for pause gets err.
func (c *Conn) fail(err error) {
	c.sock.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for serial, call := range c.calls {
		delete(c.calls, serial)
		call.err = err
		close(call.done)
	}
	for _, s := range c.spawning {
		s.report.SetReadDeadline(time.Unix(1, 0))
	}
	close(c.ended)
	if !c.giving {
		close(c.exits)
	}
}

// lost returns why the connection has ended.
func (c *Conn) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
