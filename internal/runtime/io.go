package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/crilog"
)

// ioChunk is how much is read from a container at once.
const ioChunk = 32 * 1024

// attachBacklog is how many chunks an attached client may lag behind before
// it is cut off: a slow client blocks neither the container nor others.
const attachBacklog = 512

var chunks = sync.Pool{New: func() any { b := make([]byte, ioChunk); return &b }}

// containerIO is the node's end of a container's standard streams: it copies
// what the container writes to the log and to attached clients, and what one
// of them types to the container.
type containerIO struct {
	stdin  *os.File // write end or pty master; nil without stdin
	stdout *os.File // read end or pty master
	stderr *os.File // nil with a terminal
	master bool     // stdin and stdout are the same pty master
	log    *crilog.Log

	mu       sync.Mutex
	attached map[*attachment]struct{}
	ended    bool

	pumps sync.WaitGroup
	done  chan struct{} // both streams have ended
}

// stdio is the container's end.
type stdio struct {
	stdin, stdout, stderr *os.File
}

func (s *stdio) close() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// pipe returns a pipe whose near end is for this node's poller and whose far
// end blocks, as a process expects of its standard streams.
func pipe(nearIsRead bool) (near, far *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	n, f := p[1], p[0]
	if nearIsRead {
		n, f = p[0], p[1]
	}
	if err := unix.SetNonblock(n, true); err != nil {
		unix.Close(n)
		unix.Close(f)
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	return os.NewFile(uintptr(n), "pipe"), os.NewFile(uintptr(f), "pipe"), nil
}

// newPipeIO makes the streams of a container (or an exec) without a terminal.
func newPipeIO(wantStdin bool) (_ *containerIO, _ *stdio, err error) {
	cio, child := &containerIO{}, &stdio{}
	defer func() {
		if err != nil {
			cio.closeFiles()
			child.close()
		}
	}()
	if cio.stdout, child.stdout, err = pipe(true); err != nil {
		return nil, nil, err
	}
	if cio.stderr, child.stderr, err = pipe(true); err != nil {
		return nil, nil, err
	}
	if wantStdin {
		if cio.stdin, child.stdin, err = pipe(false); err != nil {
			return nil, nil, err
		}
	}
	return cio, child, nil
}

// newTTYIO makes the node's end of a terminal from the pty's master.
func newTTYIO(master *os.File) (*containerIO, error) {
	f, err := pollable(master)
	if err != nil {
		return nil, err
	}
	return &containerIO{stdin: f, stdout: f, master: true}, nil
}

// keep returns the descriptors that pause holds for the next node: the
// container's devpts, its output, and last, so that it can be dropped, its
// input.
func (c *containerIO) keep(pts *os.File) []*os.File {
	if c.master {
		return []*os.File{pts, c.stdout}
	}
	files := []*os.File{pts, c.stdout, c.stderr}
	if c.stdin != nil {
		files = append(files, c.stdin)
	}
	return files
}

// restoreIO rebuilds the node's end from what pause kept, devpts left out. An
// input that was closed is no longer among it.
func restoreIO(kept []*os.File, tty bool) (_ *containerIO, err error) {
	defer func() {
		if err != nil {
			for _, f := range kept {
				f.Close() // those taken over by pollable are closed already, which does no harm
			}
		}
	}()
	if n := len(kept); tty && n != 1 || !tty && n != 2 && n != 3 {
		return nil, fmt.Errorf("pause kept %d descriptors, which are not a container's streams", n)
	}
	for i, f := range kept {
		if kept[i], err = pollable(f); err != nil {
			kept[i] = f
			return nil, err
		}
	}
	if tty {
		return &containerIO{stdin: kept[0], stdout: kept[0], master: true}, nil
	}
	c := &containerIO{stdout: kept[0], stderr: kept[1]}
	if len(kept) == 3 {
		c.stdin = kept[2]
	}
	return c, nil
}

// pollable turns a file into one that the poller serves; on error it is left
// as it was.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicating a stream: %w", err)
	}
	// Fd() has made the file blocking, and O_NONBLOCK lives in what both share.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("a stream: %w", err)
	}
	next := os.NewFile(uintptr(fd), f.Name())
	f.Close()
	return next, nil
}

// start begins copying to log.
func (c *containerIO) start(log *crilog.Log) {
	c.log = log
	c.attached = map[*attachment]struct{}{}
	c.done = make(chan struct{})
	c.pumps.Add(1)
	go c.pump(c.stdout, "stdout", func(a *attachment) chan []byte { return a.stdout })
	if c.stderr != nil {
		c.pumps.Add(1)
		go c.pump(c.stderr, "stderr", func(a *attachment) chan []byte { return a.stderr })
	}
	go func() {
		c.pumps.Wait()
		c.mu.Lock()
		c.ended = true
		for a := range c.attached {
			c.detachLocked(a, nil)
		}
		c.mu.Unlock()
		close(c.done)
	}()
}

func (c *containerIO) pump(f *os.File, name string, to func(*attachment) chan []byte) {
	defer c.pumps.Done()
	s := c.log.Stream(name)
	defer s.Close()
	_ = readChunks(f, func(b []byte) error {
		s.Write(b)
		c.mu.Lock()
		defer c.mu.Unlock()
		var copied []byte
		for a := range c.attached {
			ch := to(a)
			if ch == nil {
				continue
			}
			if copied == nil {
				copied = append(copied, b...)
			}
			select {
			case ch <- copied:
			default:
				c.detachLocked(a, errors.New("the client was too slow to take the container's output and was cut off; the output is in the container's log"))
			}
		}
		return nil
	})
}

// readChunks calls each with what comes from f until its end. Between reads
// it holds no buffer, so that an idle stream costs a goroutine and no more.
// The end of a terminal (EIO: nobody has it open) is the end of the stream.
func readChunks(f *os.File, each func([]byte) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n int
		var rerr error
		var buf *[]byte
		err := raw.Read(func(fd uintptr) bool {
			buf = chunks.Get().(*[]byte)
			n, rerr = unix.Read(int(fd), *buf)
			if n > 0 || (rerr != unix.EAGAIN && rerr != unix.EINTR) {
				return true
			}
			chunks.Put(buf)
			return false
		})
		if err != nil {
			return err // the file was closed
		}
		if n > 0 {
			err = each((*buf)[:n])
		}
		chunks.Put(buf)
		switch {
		case err != nil:
			return err
		case n > 0:
		case rerr == nil, rerr == unix.EIO:
			return nil
		default:
			return rerr
		}
	}
}

func (c *containerIO) closeFiles() {
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr} {
		if f != nil {
			f.Close() // the pty master twice: the second says so and does nothing
		}
	}
}

// close ends everything: pumps, attached clients, the log.
func (c *containerIO) close() {
	c.closeFiles()
	if c.done != nil {
		<-c.done
	}
	if c.log != nil {
		c.log.Close()
	}
}

// drain waits until both streams have ended, or ctx does: a process that left
// the container's may hold them open.
func (c *containerIO) drain(ctx context.Context) {
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// closeStdin gives the container the end of its input.
func (c *containerIO) closeStdin() {
	if c.stdin != nil && !c.master {
		c.stdin.Close()
	}
}

// attachment is one attached client.
type attachment struct {
	stdout, stderr chan []byte
	gone           chan struct{}
	err            error // set before gone is closed
}

func (c *containerIO) attach(stdout, stderr bool) *attachment {
	a := &attachment{gone: make(chan struct{})}
	if stdout {
		a.stdout = make(chan []byte, attachBacklog)
	}
	if stderr && c.stderr != nil {
		a.stderr = make(chan []byte, attachBacklog)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached[a] = struct{}{}
	if c.ended {
		c.detachLocked(a, nil)
	}
	return a
}

func (c *containerIO) detach(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detachLocked(a, nil)
}

func (c *containerIO) detachLocked(a *attachment, err error) {
	if _, there := c.attached[a]; !there {
		return
	}
	delete(c.attached, a)
	a.err = err
	close(a.gone)
	if a.stdout != nil {
		close(a.stdout)
	}
	if a.stderr != nil {
		close(a.stderr)
	}
}

// copyOut writes what comes to w until the stream ends or the client fails.
func copyOut(ch <-chan []byte, w io.Writer) error {
	var failed error
	for b := range ch {
		if failed == nil {
			_, failed = w.Write(b)
		}
	}
	return failed
}
