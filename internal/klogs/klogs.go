// Package klogs owns the bridge from klog, in which Kubernetes' libraries log,
// to the node's slog. What they call an error they try again by themselves, so
// it is a warning here, and not even that where it is how they work (a conflict
// between two controllers, a cache that follows a write a moment later); what
// they tell of their doings is for who debugs them; their verbose levels are
// dropped before they are formatted.
//
// It promises one logger for the whole process, klog's own being one: [Install]
// is called once, before any of those libraries is used. Safe for concurrent
// use after that. Floor: 0; it knows no package of ours.
package klogs

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// Install sends what klog is told to log.
func Install(log *slog.Logger) {
	klog.SetLoggerWithOptions(logr.FromSlogHandler(handler{log.Handler()}), klog.ContextualLogger(true))
}

// Context gives upstream code a logger whose every line has the fields given.
func Context(ctx context.Context, log *slog.Logger, fields ...any) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(handler{log.With(fields...).Handler()}))
}

// routine are errors in upstream's words that are no sign of anything: what is
// amiss about an object, its events tell. They are known by their text, being
// wrapped without a type.
var routine = []string{
	"the object has been modified; please apply your changes to the latest version",
	"is not as new as written version",
	"because it is being terminated", // a namespace's last moments
}

// routineMessages are the same, of lines without an error.
var routineMessages = []string{"Status after running PostFilter plugins for pod"}

func isRoutine(r slog.Record) bool {
	found := slices.Contains(routineMessages, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && !found {
			text := err.Error()
			// An object that was deleted while it was worked on ends as: … "name" not found.
			found = strings.HasSuffix(text, `" not found`) || slices.ContainsFunc(routine, func(s string) bool { return strings.Contains(text, s) })
		}
		return !found
	})
	return found
}

// A handler turns levels. logr hands an error at LevelError, a message of
// verbosity v at level -v.
type handler struct{ to slog.Handler }

func level(l slog.Level) (slog.Level, bool) {
	switch {
	case l >= slog.LevelWarn:
		return slog.LevelWarn, true
	case l >= slog.LevelInfo:
		return slog.LevelDebug, true
	default:
		return 0, false
	}
}

func (h handler) Enabled(ctx context.Context, l slog.Level) bool {
	to, ok := level(l)
	return ok && h.to.Enabled(ctx, to)
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	to, ok := level(r.Level)
	if !ok {
		return nil
	}
	if to == slog.LevelWarn && isRoutine(r) {
		if to = slog.LevelDebug; !h.to.Enabled(ctx, to) {
			return nil
		}
	}
	r.Level = to
	return h.to.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler { return handler{h.to.WithAttrs(attrs)} }
func (h handler) WithGroup(name string) slog.Handler       { return handler{h.to.WithGroup(name)} }
