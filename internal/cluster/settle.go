package cluster

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// settled are when, after the start, memory is given back that only the start
// needed: soon, and once more when what the first clients made has gone too.
// From then on breath is how often the node looks whether it should.
var settled = []time.Duration{5 * time.Second, 30 * time.Second}

const breath = 30 * time.Second

func (c *Cluster) settle(ctx context.Context) error {
	var r rest
	for i := 0; ; i++ {
		after := breath
		if i < len(settled) {
			after = settled[i]
		}
		used := processorTime()
		timer := c.cfg.Clock.NewTimer(after)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C():
		}
		if !r.due(processorTime()-used, after) && i >= len(settled) {
			continue
		}
		if err := sys.Trim(); err != nil {
			c.cfg.Log.Debug("giving memory back", "err", err)
		}
	}
}

// rest decides when memory is given back: in the first breath after much was
// done, a thousand pods started say, or now and then when nothing is.
type rest struct {
	busy bool          // since memory was given back
	idle time.Duration // likewise
}

const (
	// busyShare of one processor is much, idleShare next to nothing.
	busyShare, idleShare = 0.05, 0.01
	// idleLong is how long the node does next to nothing before it is asked.
	idleLong = 5 * time.Minute
)

// due takes how much was done in the time that has passed.
func (r *rest) due(used, passed time.Duration) bool {
	share := float64(used) / float64(passed)
	switch {
	case share > busyShare:
		r.busy = true
		return false
	case share <= idleShare:
		r.idle += passed
	}
	if !r.busy && r.idle < idleLong {
		return false
	}
	*r = rest{}
	return true
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
