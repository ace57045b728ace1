package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel acknowledges a link that is up and an address that is added, and
// makes them work only later, in work queues. Until then packets are dropped,
// and a pod's first connection would begin with a second's wait for its
// retransmission. So Setup ends with asking until the answer is right.

// patience bounds the wait; work queues take milliseconds at worst. maxPause
// bounds the time between two questions, which cost some 10 µs.
const (
	patience = 5 * time.Second
	maxPause = 500 * time.Microsecond
)

// question asks the kernel for something; ready judges the answer.
type question struct {
	request
	ready func(answer []byte) bool
}

// await asks until all answers are right.
func await(ctx context.Context, c *conn, questions ...question) error {
	if len(questions) == 0 {
		return nil
	}
	deadline := time.Now().Add(patience)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, maxPause) {
		right := make([]bool, len(questions))
		requests := make([]request, len(questions))
		for i, q := range questions {
			requests[i] = q.request
			requests[i].reply = func(answer []byte) { right[i] = q.ready(answer) }
		}
		if err := c.do(requests...); err != nil {
			return err
		}
		i := slices.Index(right, false)
		if i < 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v", questions[i].why, patience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// linkWorks is true when packets pass: an end of a veth that was opened before
// its peer, the bridge port it is and the bridge whose first port that is all
// wait for the link watch. (Since Linux 6.8 asking does its work at once.)
func linkWorks(name string, index int) question {
	q := question{request: newRequest("waiting for link "+name+" to come up", unix.RTM_GETLINK, 0)}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	q.ready = func(answer []byte) bool {
		if len(answer) < unix.SizeofIfInfomsg {
			return false
		}
		attrs, err := nl.ParseRouteAttr(answer[unix.SizeofIfInfomsg:])
		if err != nil {
			return false
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_OPERSTATE {
				return len(a.Value) == 1 && netlink.LinkOperState(a.Value[0]) == netlink.OperUp
			}
		}
		return false
	}
	return q
}

// addressWorks is true when the kernel takes packets to an address of its own:
// an IPv6 address gets its local route from the worker that would look for
// duplicates.
func addressWorks(ip netip.Addr) question {
	q := question{request: newRequest("waiting for address "+ip.String(), unix.RTM_GETROUTE, 0)}
	q.tolerate = unix.ENETUNREACH
	msg := nl.NewRtMsg()
	msg.Family = family(ip)
	msg.Dst_len = uint8(ip.BitLen())
	q.AddData(msg)
	q.AddData(nl.NewRtAttr(unix.RTA_DST, ip.AsSlice()))
	q.ready = func(answer []byte) bool {
		return len(answer) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(answer).Type == unix.RTN_LOCAL
	}
	return q
}

// addressesWork asks for those addresses that need waiting for.
func addressesWork(ips []netip.Prefix) []question {
	var all []question
	for _, ip := range ips {
		if ip.Addr().Is6() {
			all = append(all, addressWorks(ip.Addr()))
		}
	}
	return all
}
