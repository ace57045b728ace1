package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn is a NETLINK_ROUTE socket that sends many requests with one system
// call. The kernel carries them out in order, one by one, before sendto
// returns; a failing one does not stop those after it.
type conn struct {
	mu sync.Mutex
	fd int
	in []byte
}

// answerSize is room for the longest single answer, the description of a link.
const answerSize = 32 << 10

// request is one message, with the words for the error it may cause.
type request struct {
	*nl.NetlinkRequest
	why      string
	tolerate unix.Errno           // not an error for the caller, 0 for none
	reply    func(payload []byte) // called with each answer that is no acknowledgement
}

// newRequest makes a request that the kernel acknowledges.
func newRequest(why string, kind, flags int) request {
	return request{NetlinkRequest: nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK), why: why}
}

// dial opens a socket in the calling thread's network namespace.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &conn{fd: fd, in: make([]byte, answerSize)}
	// Words for errors, and errors without the request repeated in them.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return c, nil
}

// dialIn opens a socket in the network namespace ns.
func dialIn(ns *os.File) (c *conn, err error) {
	err = inNetns(ns, func() (err error) {
		c, err = dial()
		return err
	})
	return c, err
}

func (c *conn) Close() error {
	return unix.Close(c.fd)
}

// maxBatch bounds the requests of one system call: their answers have to find
// room in the socket before the first is read.
const maxBatch = 32

// do sends the requests together and returns the error of the first that
// failed.
func (c *conn) do(requests ...request) (first error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for batch := range slices.Chunk(requests, maxBatch) {
		if err := c.send(batch); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// send does one batch. It needs mu.
func (c *conn) send(requests []request) error {
	var buf []byte
	waiting := make(map[uint32]request, len(requests))
	for _, r := range requests {
		buf = append(buf, r.Serialize()...)
		waiting[r.Seq] = r
	}
	if err := unix.Sendto(c.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto netlink", err)
	}
	var first error
	for len(waiting) > 0 {
		n, _, err := unix.Recvfrom(c.fd, c.in, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom netlink", err)
		}
		if n > len(c.in) {
			return fmt.Errorf("netlink answer of %d bytes is longer than expected", n)
		}
		answers, err := syscall.ParseNetlinkMessage(c.in[:n])
		if err != nil {
			return fmt.Errorf("netlink answer: %w", err)
		}
		for _, m := range answers {
			r, ok := waiting[m.Header.Seq]
			switch {
			case !ok:
				continue
			case m.Header.Type != unix.NLMSG_ERROR:
				if r.reply != nil {
					r.reply(m.Data)
				}
				continue
			}
			delete(waiting, m.Header.Seq)
			err := ackError(m)
			if err == nil || r.tolerate != 0 && errors.Is(err, r.tolerate) {
				continue
			}
			if first == nil {
				first = fmt.Errorf("%s: %w", r.why, err)
			}
		}
	}
	return first
}

// ackError returns the error an acknowledgement carries, with the kernel's
// explanation where there is one.
func ackError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return errors.New("short acknowledgement")
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	err := unix.Errno(-code)
	const ackSize = 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || len(m.Data) < ackSize {
		return err
	}
	attrs, perr := nl.ParseRouteAttr(m.Data[ackSize:])
	if perr != nil {
		return err
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w (%s)", err, unix.ByteSliceToString(a.Value))
		}
	}
	return err
}
