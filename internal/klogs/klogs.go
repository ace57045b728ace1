// Package klogs owns the bridge from klog, in which Kubernetes' libraries log,
// to the node's slog. What they call an error they meet every day (a conflict,
// a retry) and mend themselves, so it is a warning here; what they tell of
// their doings is for who debugs them; their verbose levels are dropped before
// they are formatted.
//
// It promises one logger for the whole process, klog's own being one: [Install]
// is called once, before any of those libraries is used. Safe for concurrent
// use after that. Floor: 0; it knows no package of ours.
package klogs

import (
	"context"
	"log/slog"

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
	r.Level = to
	return h.to.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler { return handler{h.to.WithAttrs(attrs)} }
func (h handler) WithGroup(name string) slog.Handler       { return handler{h.to.WithGroup(name)} }
