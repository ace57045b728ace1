// Package play runs objects in the foreground: it makes them in an API, shows
// what the containers of their pods say and what becomes of them, and ends when
// they have ended, when one of the pods can't start, or when the user
// interrupts.
//
// It owns what it has made, and nothing else: a [World] keeps the objects of
// one play apart from all others. It promises that when [Run] returns, every
// object it made is removed, with the pods that came of it (or ctx has ended,
// which is the caller's impatience), that every line the containers wrote was
// shown, and that the result says how the pods ended, see [Outcome].
//
// What is said and decided is pure (plan.go, say.go, outcome.go); this file
// moves it, and api.go is the World that is an API. One goroutine per pod
// reads logs, one makes and removes objects, and one loop does everything
// else.
//
// Floor: 9, a face of the API. It knows the log files of this machine's pods,
// and nothing of the engine and the runtime.
package play

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/logview"
	"unipod.dev/unipod/internal/progress"
	"unipod.dev/unipod/internal/timeline"
)

// Config is one play. World, Runners, LogDir and Screen are required.
type Config struct {
	World World
	// Runners are the objects that pods come of, in the order of the input.
	Runners []Runner
	// Pods are those whose names are known before they are made.
	Pods []*v1.Pod
	// LogDir is the node's, in kubelet's layout.
	LogDir string
	// OwnLogs: the node keeps the logs of removed pods, for us to remove.
	OwnLogs bool
	Screen  *progress.Screen
	// Quiet shows only what the containers say.
	Quiet bool
	// Since leaves out older log lines.
	Since time.Time
	// Retry goes on with a pod that can't start, as kubelet does, instead of
	// giving up.
	Retry bool
	// Finished, when set, is given the pods' timelines when all is over, in
	// the order in which they came.
	Finished func([]timeline.Timeline)
	// Signals interrupt: the first ends the pods gracefully, the second kills
	// them.
	Signals <-chan os.Signal
	Clock   clock.WithTicker
}

// Run plays the objects and returns the exit code of the whole. An error means
// that something failed beside the pods; they are ended all the same.
func Run(ctx context.Context, cfg Config) (int, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	following, stopFollowing := context.WithCancel(ctx)
	defer stopFollowing()
	p := &player{
		cfg:     cfg,
		talk:    newTalk(cfg.Pods, cfg.Screen.Colour),
		tally:   newTally(cfg.Runners, cfg.Retry),
		lives:   map[types.UID]*timeline.Builder{},
		events:  cfg.World.Watch(watching),
		created: make(chan error, 1),
		deleted: make(chan error, 1),
	}
	p.logs, p.following = errgroup.WithContext(following)
	go func() { p.created <- cfg.World.Create(ctx) }()
	err := p.loop(ctx)
	stopFollowing()
	if lerr := p.logs.Wait(); lerr != nil && !errors.Is(lerr, context.Canceled) {
		err = errors.Join(err, lerr)
	}
	cfg.Screen.Close()
	if cfg.OwnLogs {
		for _, uid := range p.tally.order {
			err = errors.Join(err, os.RemoveAll(p.dir(p.tally.pods[uid])))
		}
	}
	p.finish()
	return p.code(err), err
}

type player struct {
	cfg       Config
	talk      *talk
	tally     *tally
	lives     map[types.UID]*timeline.Builder
	events    <-chan Event
	logs      *errgroup.Group
	following context.Context

	created, deleted chan error
	making           bool // Create hasn't returned

	stopping  bool
	killed    bool
	signal    os.Signal // that ended the play, if one did
	deadlines map[types.UID]time.Time
	ticker    clock.Ticker
}

// dir is where the node has the logs of a pod.
func (p *player) dir(pod *v1.Pod) string {
	return filepath.Join(p.cfg.LogDir, fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID))
}

// follow shows a pod's logs until the play ends.
func (p *player) follow(pod *v1.Pod) error {
	f, err := logview.Follow(p.dir(pod), logview.Options{Since: p.cfg.Since})
	if err != nil {
		return err
	}
	p.logs.Go(func() error {
		defer f.Close()
		return f.Run(p.following, func(l logview.Line) error {
			p.cfg.Screen.Out(p.talk.prefix(pod.UID, l.Container, "|"), l.Text)
			return nil
		})
	})
	return nil
}

// loop carries the play from the objects' creation to their removal.
func (p *player) loop(ctx context.Context) (err error) {
	defer func() {
		if p.ticker != nil {
			p.ticker.Stop()
		}
	}()
	p.making = true
	for {
		var tick <-chan time.Time
		if p.ticker != nil {
			tick = p.ticker.C()
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case sig := <-p.cfg.Signals:
			p.interrupt(ctx, sig)
		case <-tick:
			p.countdown()
		case cerr := <-p.created:
			p.making = false
			switch {
			case p.stopping:
				err = errors.Join(err, cerr)
				p.remove(ctx)
			case cerr != nil:
				err = errors.Join(err, cerr)
				p.stop(ctx)
			default:
				p.endWhenOver(ctx)
			}
		case derr := <-p.deleted:
			p.drain()
			return errors.Join(err, derr)
		case ev, ok := <-p.events:
			if !ok {
				return errors.Join(err, fmt.Errorf("the API ended before the pods did: %w", io.ErrUnexpectedEOF))
			}
			if eerr := p.event(ctx, ev); eerr != nil {
				err = errors.Join(err, eerr)
				p.stop(ctx)
			}
		}
	}
}

// drain takes what was told before the last object was gone.
func (p *player) drain() {
	for {
		select {
		case ev, ok := <-p.events:
			if !ok {
				return
			}
			if ev.Type == PodRemoved {
				p.remember(ev)
				p.tally.removed(ev.Pod)
			}
		default:
			p.cfg.Screen.Set("stopping", "")
			return
		}
	}
}

func (p *player) event(ctx context.Context, ev Event) (err error) {
	now := p.cfg.Clock.Now()
	if ev.Pod != nil {
		p.talk.meet(ev.Pod)
		p.remember(ev)
	}
	switch ev.Type {
	case Recorded:
		p.say(p.talk.object(ev.Of, ev.Record, now))
	case PodRecorded:
		p.say(p.talk.record(ev.Pod, ev.Record, now))
		if !p.stopping {
			p.tally.record(ev.Pod, ev.Record)
		}
	case PodChanged:
		if p.tally.pods[ev.Pod.UID] == nil {
			err = p.follow(ev.Pod)
		}
		p.say(p.talk.status(ev.Pod))
		p.changed(ev)
	case PodRemoved:
		p.tally.removed(ev.Pod)
		delete(p.deadlines, ev.Pod.UID)
		p.countdown()
	case JobEnded:
		if !p.stopping {
			p.tally.jobs[ev.Of] = ev.Failed
		}
	}
	p.endWhenOver(ctx)
	return err
}

// endWhenOver ends the play when there is nothing left to wait for.
func (p *player) endWhenOver(ctx context.Context) {
	why, over := p.tally.over()
	if !over || p.stopping || p.making {
		return
	}
	if why != "" {
		p.say([]string{why})
	}
	p.stop(ctx)
}

// changed takes a pod's new status. What comes after the end was decided is
// our own doing: it doesn't count for the result.
func (p *player) changed(ev Event) {
	if _, known := p.tally.pods[ev.Pod.UID]; known && p.stopping {
		return
	}
	p.tally.status(ev.Of, ev.Pod)
	if !p.stopping {
		p.tally.judge(ev.Pod)
	}
}

// remember takes an event into its pod's timeline.
func (p *player) remember(ev Event) {
	now := p.cfg.Clock.Now()
	b := p.lives[ev.Pod.UID]
	if b == nil {
		b = timeline.New(now, ev.Pod)
		p.lives[ev.Pod.UID] = b
	}
	switch ev.Type {
	case PodChanged:
		b.Status(now, ev.Pod)
	case PodRecorded:
		if ev.Record != nil {
			b.Record(now, *ev.Record)
		}
	case PodRemoved:
		if _, final := Outcome(ev.Pod); !final { // else its end has been told
			b.Removed(now)
		}
	}
}

// finish hands the timelines over.
func (p *player) finish() {
	if p.cfg.Finished == nil {
		return
	}
	all := []timeline.Timeline{}
	for _, uid := range p.tally.order {
		if b := p.lives[uid]; b != nil {
			all = append(all, b.Timeline())
		}
	}
	p.cfg.Finished(all)
}

func (p *player) say(lines []string) {
	if p.cfg.Quiet {
		return
	}
	for _, l := range lines {
		p.cfg.Screen.Say("%s", l)
	}
}

// interrupt is what a signal does: end, then kill.
func (p *player) interrupt(ctx context.Context, sig os.Signal) {
	switch {
	case p.signal == nil:
		p.signal = sig
		p.say([]string{fmt.Sprintf("Stopping %s, press Ctrl-C again to kill", count(p.tally.living(), "pod"))})
		p.stop(ctx)
	case !p.killed:
		p.killed = true
		p.say([]string{"Killing " + count(p.tally.living(), "pod")})
		p.cfg.World.Kill()
	}
}

// stop begins the end of everything, each pod within its own grace period.
func (p *player) stop(ctx context.Context) {
	if p.stopping {
		return
	}
	p.stopping = true
	now := p.cfg.Clock.Now()
	p.deadlines = map[types.UID]time.Time{}
	for uid, pod := range p.tally.pods {
		left := time.Duration(0)
		if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
			left = time.Duration(*s) * time.Second
		}
		if !p.tally.gone[uid] {
			p.deadlines[uid] = now.Add(left)
		}
	}
	p.ticker = p.cfg.Clock.NewTicker(time.Second)
	if p.signal != nil { // else it is over before it could be read
		p.countdown()
	}
	if !p.making {
		p.remove(ctx)
	}
}

// remove removes all objects, once nobody makes any.
func (p *player) remove(ctx context.Context) {
	go func() { p.deleted <- p.cfg.World.Delete(ctx) }()
}

// countdown shows how long the slowest pod still has.
func (p *player) countdown() {
	if p.cfg.Quiet || !p.stopping {
		return
	}
	var last time.Time
	for _, d := range p.deadlines {
		if d.After(last) {
			last = d
		}
	}
	text := ""
	if n := p.tally.living(); n > 0 {
		text = "Stopping " + count(n, "pod")
		if left := last.Sub(p.cfg.Clock.Now()); left > 0 && !p.killed {
			text += fmt.Sprintf(", %d s left until they are killed", int(left.Round(time.Second).Seconds()))
		}
	}
	p.cfg.Screen.Set("stopping", text)
}

// code is the exit code of the whole: that of the signal when one ended it,
// as a shell would report it, else that of the pods.
func (p *player) code(err error) int {
	if s, ok := p.signal.(syscall.Signal); ok {
		return 128 + int(s)
	}
	if code := p.tally.code(); code != 0 || err == nil {
		return code
	}
	return 1
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
