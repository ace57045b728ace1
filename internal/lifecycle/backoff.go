package lifecycle

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// Kubelet's intervals.
const (
	backoffInitial = 10 * time.Second
	backoffMax     = 300 * time.Second
	// A container that has run this long since its back-off last grew has
	// proved itself: the next crash starts over.
	backoffReset = 2 * backoffMax

	// retryInterval is kubelet's wait after a sync that failed for another
	// reason than a crash or a pull.
	retryInterval = 10 * time.Second
	// settle is how long a fresh failure or exit is shown as it happened
	// before it becomes a back-off: the time kubelet needs to come round.
	settle = time.Second

	// Volumes that can't be set up are tried again after 500 ms, doubling.
	volumeRetryInitial = 500 * time.Millisecond
	volumeRetryMax     = 2*time.Minute + 2*time.Second

	// minimumGrace is the least a container gets between its stop signal and
	// SIGKILL.
	minimumGrace = 2 * time.Second
)

// backoff is a delay that doubles with each failure.
type backoff struct {
	delay time.Duration
	last  time.Time // when delay was last raised
}

// holds reports whether something that happened at since must still wait, and
// until when.
func (b backoff) holds(since, now time.Time) (time.Time, bool) {
	if b.delay == 0 || since.Sub(b.last) > backoffReset {
		return time.Time{}, false
	}
	until := since.Add(b.delay)
	return until, now.Before(until)
}

// next raises the delay for an event at since.
func (b backoff) next(since, now time.Time) backoff {
	if b.delay == 0 || since.Sub(b.last) > backoffReset {
		return backoff{delay: backoffInitial, last: now}
	}
	return backoff{delay: min(2*b.delay, backoffMax), last: now}
}

// crash is the back-off of one container. It starts over when key changes.
type crash struct {
	backoff
	key       string
	announced string // the instance whose back-off was put on record
}

// crashKey covers what resets the back-off when it is edited.
func crashKey(c *v1.Container) string {
	return c.Image + "\x00" + c.Resources.String()
}

// pull is the back-off of one image.
type pull struct {
	backoff
	message string // why it failed last
}
