// Package play runs pods in the foreground: it gives them to an engine, shows
// what their containers say and what becomes of them, and ends when they have
// ended, when one of them can't start, or when the user interrupts.
//
// It owns no pod: the engine does. It promises that when [Run] returns, every
// pod it applied is removed (or ctx has ended, which is the caller's
// impatience), that every line the containers wrote was shown, and that the
// result says how the pods ended, see [Outcome].
//
// What is said and decided is pure (say.go, outcome.go); this file moves it.
// One goroutine per pod reads logs, and one loop does everything else.
//
// Floor: 9, a face of the engine. It knows the engine's events and the log
// files, and nothing of the runtime.
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

	"unipod.dev/unipod/internal/engine"
	"unipod.dev/unipod/internal/logview"
	"unipod.dev/unipod/internal/progress"
	"unipod.dev/unipod/internal/timeline"
)

// Engine is what play asks of internal/engine.
type Engine interface {
	Apply(pod *v1.Pod) error
	Delete(uid types.UID, grace *time.Duration)
	Watch(ctx context.Context) <-chan engine.Event
}

// Config is one play. Pods, Engine, LogDir and Screen are required.
type Config struct {
	Pods   []*v1.Pod
	Engine Engine
	// LogDir is the engine's; the pods' directories in it are removed at the
	// end, so the engine must be told to keep them until then.
	LogDir string
	Screen *progress.Screen
	// Quiet shows only what the containers say.
	Quiet bool
	// Since leaves out older log lines.
	Since time.Time
	// Retry goes on with a pod that can't start, as kubelet does, instead of
	// giving up.
	Retry bool
	// Finished, when set, is given the pods' timelines when all is over, in
	// the order of Pods.
	Finished func([]timeline.Timeline)
	// Signals interrupt: the first ends the pods gracefully, the second kills
	// them.
	Signals <-chan os.Signal
	Clock   clock.WithTicker
}

// Run plays the pods and returns the exit code of the whole. An error means
// that something failed beside the pods; they are ended all the same.
func Run(ctx context.Context, cfg Config) (int, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	p := &player{
		cfg:    cfg,
		talk:   newTalk(cfg.Pods, cfg.Screen.Colour),
		tally:  newTally(cfg.Pods, cfg.Retry),
		lives:  map[types.UID]*timeline.Builder{},
		events: cfg.Engine.Watch(watching),
	}
	following, stopFollowing := context.WithCancel(ctx)
	defer stopFollowing()
	logs, lctx := errgroup.WithContext(following)
	var err error
	for _, pod := range cfg.Pods {
		if err = p.follow(lctx, logs, pod); err != nil {
			break
		}
	}
	for _, pod := range cfg.Pods {
		if err != nil {
			break
		}
		if err = cfg.Engine.Apply(pod); err == nil {
			p.applied++
		}
	}
	if err != nil {
		p.stop(nil)
	}
	err = errors.Join(err, p.loop(ctx))
	stopFollowing()
	if lerr := logs.Wait(); lerr != nil && !errors.Is(lerr, context.Canceled) {
		err = errors.Join(err, lerr)
	}
	cfg.Screen.Close()
	for _, pod := range cfg.Pods {
		err = errors.Join(err, os.RemoveAll(p.dir(pod)))
	}
	p.finish()
	return p.code(err), err
}

type player struct {
	cfg     Config
	talk    *talk
	tally   *tally
	lives   map[types.UID]*timeline.Builder
	events  <-chan engine.Event
	applied int // pods the engine has

	stopping  bool
	killed    bool
	signal    os.Signal // that ended the play, if one did
	deadlines map[types.UID]time.Time
	ticker    clock.Ticker
}

// dir is where the engine has the logs of a pod.
func (p *player) dir(pod *v1.Pod) string {
	return filepath.Join(p.cfg.LogDir, fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID))
}

// follow shows a pod's logs until ctx ends.
func (p *player) follow(ctx context.Context, g *errgroup.Group, pod *v1.Pod) error {
	f, err := logview.Follow(p.dir(pod), logview.Options{Since: p.cfg.Since})
	if err != nil {
		return err
	}
	g.Go(func() error {
		defer f.Close()
		return f.Run(ctx, func(l logview.Line) error {
			p.cfg.Screen.Out(p.talk.prefix(pod.UID, l.Container, "|"), l.Text)
			return nil
		})
	})
	return nil
}

// loop carries the play from the pods' start to their removal.
func (p *player) loop(ctx context.Context) error {
	defer func() {
		if p.ticker != nil {
			p.ticker.Stop()
		}
	}()
	for p.applied > 0 {
		var tick <-chan time.Time
		if p.ticker != nil {
			tick = p.ticker.C()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case sig := <-p.cfg.Signals:
			p.interrupt(sig)
		case <-tick:
			p.countdown()
		case ev, ok := <-p.events:
			if !ok {
				return fmt.Errorf("the engine stopped before the pods did: %w", io.ErrUnexpectedEOF)
			}
			p.event(ev)
		}
	}
	return nil
}

func (p *player) event(ev engine.Event) {
	if ev.Pod == nil || !p.tally.knows(ev.Pod.UID) {
		return // another play's, on the same node
	}
	p.remember(ev)
	switch ev.Type {
	case engine.Recorded:
		p.say(p.talk.record(ev, p.cfg.Clock.Now()))
		if !p.stopping {
			p.tally.record(ev)
		}
	case engine.StatusChanged:
		p.say(p.talk.status(ev.Pod))
		if !p.stopping { // what comes later is our own doing
			p.tally.status(ev.Pod)
		}
	case engine.Removed:
		p.applied--
		delete(p.deadlines, ev.Pod.UID)
		p.countdown()
		return
	}
	if why, over := p.tally.over(); over && !p.stopping {
		if why != "" {
			p.say([]string{why})
		}
		p.stop(nil)
	}
}

// remember takes an event into its pod's timeline.
func (p *player) remember(ev engine.Event) {
	now := p.cfg.Clock.Now()
	b := p.lives[ev.Pod.UID]
	if b == nil {
		b = timeline.New(now, ev.Pod)
		p.lives[ev.Pod.UID] = b
	}
	switch ev.Type {
	case engine.StatusChanged:
		b.Status(now, ev.Pod)
	case engine.Recorded:
		if r := ev.Record; r != nil {
			b.Record(now, timeline.Record{Type: r.Type, Reason: r.Reason, Message: r.Message, Container: r.Container})
		}
	case engine.Removed:
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
	for _, pod := range p.cfg.Pods {
		if b := p.lives[pod.UID]; b != nil {
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
func (p *player) interrupt(sig os.Signal) {
	switch {
	case p.signal == nil:
		p.signal = sig
		p.say([]string{fmt.Sprintf("Stopping %s, press Ctrl-C again to kill", count(p.applied, "pod"))})
		p.stop(nil)
	case !p.killed:
		p.killed = true
		p.say([]string{"Killing " + count(p.applied, "pod")})
		now := time.Duration(0)
		p.stop(&now)
	}
}

// stop ends all pods, within their own grace period or the one given.
func (p *player) stop(grace *time.Duration) {
	now := p.cfg.Clock.Now()
	p.deadlines = map[types.UID]time.Time{}
	for _, pod := range p.cfg.Pods {
		left := time.Duration(0)
		if grace == nil && pod.Spec.TerminationGracePeriodSeconds != nil {
			left = time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
		}
		p.deadlines[pod.UID] = now.Add(left)
		p.cfg.Engine.Delete(pod.UID, grace)
	}
	if !p.stopping {
		p.stopping = true
		p.ticker = p.cfg.Clock.NewTicker(time.Second)
	}
	if p.signal != nil { // else it is over before it could be read
		p.countdown()
	}
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
	if p.applied > 0 {
		text = "Stopping " + count(p.applied, "pod")
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
